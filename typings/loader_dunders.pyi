"""What Salt's loader puts into every module of `_modules`, `_states`, `_runners`, `_engines` and `pillar`.

For the type checker alone: import it under TYPE_CHECKING.
"""

from collections.abc import Callable, Mapping
from typing import Any

__salt__: Mapping[str, Callable[..., Any]]
__opts__: Mapping[str, Any]
__grains__: Mapping[str, Any]
__context__: dict[str, Any]
__pillar__: dict[str, Any]
