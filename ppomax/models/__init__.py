"""Language models, scalar models (reward model, critic) and log-probabilities."""
