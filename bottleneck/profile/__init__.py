"""The profile: what a cluster is made of, read from YAML, checked, in base SI units.

`types` and what it draws on say what may be written, `loading` reads it, `checks` compares its parts, `fit` works out
what a model needs. Other rooms take the names below from here; the modules of this room take them from each other.
"""

from bottleneck.profile.loading import load_engines, load_profile, validation_problems
from bottleneck.profile.places import find_profile, list_profiles, profile_name, profiles_directory
from bottleneck.profile.types import (
    Accelerator,
    Control,
    Deployment,
    EngineSpec,
    Link,
    Model,
    Network,
    Node,
    Perf,
    Profile,
    Quantization,
    Sampler,
    Server,
    Shape,
    Workload,
)
from bottleneck.profile.yaml_lines import Problem, ProfileError

__all__ = [
    "Accelerator",
    "Control",
    "Deployment",
    "EngineSpec",
    "Link",
    "Model",
    "Network",
    "Node",
    "Perf",
    "Problem",
    "Profile",
    "ProfileError",
    "Quantization",
    "Sampler",
    "Server",
    "Shape",
    "Workload",
    "find_profile",
    "list_profiles",
    "load_engines",
    "load_profile",
    "profile_name",
    "profiles_directory",
    "validation_problems",
]
