"""TG-DFER from Python."""

import sys
from importlib.util import find_spec
from pathlib import Path


def _refuse_modules_in_the_way() -> None:
    """Our packages are plain ``cache``, ``pipeline`` and ``cli``; a user's own may hide them."""
    home = Path(__file__).resolve().parent
    for name in ("cache", "pipeline", "cli"):
        spec = getattr(sys.modules.get(name), "__spec__", None) or find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is not None and home not in origin.parents:
            raise ImportError(
                f"{origin} is in the way: tgdfer has a package {name} of its own; rename that "
                "file, or start Python in another folder"
            )


_refuse_modules_in_the_way()


def main() -> None:
    """The command line, as ``tgdfer`` and ``python -m tgdfer`` start it."""
    from cli.main import run

    run()


if __name__ == "__main__":
    main()
