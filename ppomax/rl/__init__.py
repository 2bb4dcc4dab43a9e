"""The arithmetic of PPO: pure functions on tensors, without models, configuration or ranks.

Shapes: B samples, T response positions. ``mask`` (B, T) is True on the policy's own tokens and may have gaps.
"""
