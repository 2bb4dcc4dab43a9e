"""The embedded world: a wind tunnel for RLHF, in which human judgement can be computed.

>>> from ppomax.world import World
>>> world = World("en", seed=0)
>>> prompt = world.prompts("heldout", 1)[0]
>>> world.judge(prompt, "I do not know.").overall

Facts, grammar, prompts, answers and judge follow from (language, seed, size); nothing is downloaded or learnt.
"""

from ppomax.world.judge import Judgement
from ppomax.world.prompts import Task
from ppomax.world.world import VERSION, World, fingerprint

__all__ = ["VERSION", "Judgement", "Task", "World", "fingerprint"]
