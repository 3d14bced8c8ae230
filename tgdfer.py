"""TG-DFER from Python."""

import sys
from importlib.util import find_spec
from pathlib import Path


def _module_in_the_way() -> str:
    """Our packages are plain ``cache``, ``pipeline`` and ``cli``; a user's own may hide them."""
    home = Path(__file__).resolve().parent
    for name in ("cache", "pipeline", "cli"):
        found = sys.modules.get(name) or find_spec(name)
        file = getattr(found, "__file__", None) or getattr(found, "origin", None)
        if file and home not in Path(file).resolve().parents:
            return (
                f"{file} is in the way: tgdfer has a package {name} of its own; rename that file, "
                "or start Python in another folder"
            )
    return ""


if _IN_THE_WAY := _module_in_the_way():
    if __name__ == "__main__":
        print(f"error: {_IN_THE_WAY}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(_IN_THE_WAY)


def main() -> None:
    """The command line, as ``tgdfer`` and ``python -m tgdfer`` start it."""
    from cli.main import run

    run()


if __name__ == "__main__":
    main()
