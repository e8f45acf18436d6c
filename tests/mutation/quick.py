"""A pytest plugin: Hypothesis need not find the smallest example on which a mutant fails."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile("quick", phases=(Phase.explicit, Phase.generate), derandomize=True, database=None)
settings.load_profile("quick")
