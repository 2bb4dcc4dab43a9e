"""What `ppomax serve-rollouts` adds to vLLM's workers. Imported there, by its own name and without ppomax around it."""
