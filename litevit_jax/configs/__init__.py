"""The recipes, as `from litevit_jax.configs import mae_tiny`.

In the repository they are the files of configs/, beside this package. An installed
package has those files in the place of this one.
"""

import pathlib
from typing import TYPE_CHECKING, Any

__path__ = [str(pathlib.Path(__file__).parents[2] / "configs")]

if TYPE_CHECKING:  # checkers do not follow __path__
    from configs import common as common

    def __getattr__(name: str) -> Any: ...
