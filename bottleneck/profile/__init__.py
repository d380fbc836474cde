"""Read and check a profile: what a cluster is made of, in base SI units.

`types` and what it draws on say what may be written, `loading` reads it, `checks` compares its parts; what a model
needs is worked out in `bottleneck.performance`. Other rooms take the names below from here; the modules of this room
take them from each other.
"""

from bottleneck.profile.loading import load_profile, validation_problems
from bottleneck.profile.paths import find_profile, list_profiles, profile_name, profiles_directory
from bottleneck.profile.types import Deployment, Profile, Quantization, Server, Shape
from bottleneck.profile.yaml_lines import ProfileError

__all__ = [
    "Deployment",
    "Profile",
    "ProfileError",
    "Quantization",
    "Server",
    "Shape",
    "find_profile",
    "list_profiles",
    "load_profile",
    "profile_name",
    "profiles_directory",
    "validation_problems",
]
