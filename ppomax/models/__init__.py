"""Language models, scalar models (reward model, critic) and log-probabilities."""

import logging

from transformers.utils import logging as transformers_logging

logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; the failure itself is reported by loading
transformers_logging.disable_progress_bar()  # a bar for every file read or written drowns our own
