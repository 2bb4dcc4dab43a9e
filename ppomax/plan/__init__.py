"""What a PPO run will need, worked out from shapes before any weight is loaded: memory by part, seconds, what fits.

`shapes` counts parameters on the meta device, `devices` holds what is assumed of each kind of device, `memory` and
`seconds` are the formulas, `search` tries the settings. docs/plan.md states every formula and assumption.
"""
