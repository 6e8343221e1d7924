"""TAP, the tri-segment activation approximation of INT8 networks: operator, INT8 engine, scoring, environment."""

import gymnasium

gymnasium.register(id="TAP-v0", entry_point="approx_env.env:TapEnv", vector_entry_point="approx_env.env:TapVectorEnv")
