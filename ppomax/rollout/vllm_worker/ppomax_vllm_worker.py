"""One method more for vLLM's workers (``--worker-extension-cls``). Runs in vLLM's environment: nothing of ppomax is imported.

On a CPU vLLM packs the weights of every linear layer for its matrix kernels. A reload packs them anew, but for an output
layer that is tied to the input embeddings: no weights come under its name, so it would go on with those of the start
(vLLM 0.32.0; without this, the log-probabilities after an update are wrong by more than 1 nat).
"""

from __future__ import annotations

from typing import Any


class TiedHead:
    """Mixed into vLLM's Worker."""

    model_runner: Any

    def pack_tied_head(self) -> bool:
        """Pack the output layer from the embeddings as they are now; whether there was one to pack."""
        model = self.model_runner.get_model()
        head = getattr(model, "lm_head", None)
        if head is None or not hasattr(head, "cpu_linear"):
            return False
        head.quant_method.process_weights_after_loading(head)
        return True
