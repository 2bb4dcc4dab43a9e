"""Bodies of the verbs of ``cli.py``: ``main(verb, words) -> exit code``, imported only when the verb is used."""
