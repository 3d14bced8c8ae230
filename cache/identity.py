"""What a store was made from -> one digest, and the differences between two stores.

Two stores with the same identity hold the same features.  It is computed from declared values and
bytes, never from paths, times, host names or pickles.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from cache.errors import RefusedError
from cache.files import canonical_json, sha256

WHOLE_FRAMES = "whole"

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
SIZE_MAX = 1 << 20
Size = Annotated[int, Field(ge=1, le=SIZE_MAX)]


class FrozenModel(BaseModel):
    """Fields that never change; unknown ones are refused, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """As in pydantic, except that a Ctrl-C in a serializer of ours stays one."""
        try:
            return super().model_dump(**options)
        except ValueError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise error.__cause__ from None
            raise


@contextmanager
def refused(
    what: str, error: type[RefusedError] = RefusedError, remedy: str = ""
) -> Iterator[None]:
    """Turn a value that a model refuses into one sentence about ``what``."""
    try:
        yield
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        raise error(
            f"{what} ({where}{': ' * bool(where)}{text})" + (f": {remedy}" if remedy else "")
        ) from problem


class EncoderIdentity(FrozenModel):
    """The frozen CLIP model whose image tower made the features."""

    name: str  # open_clip's model name, or the bundled encoder's
    weights_sha256: str
    activation: str
    dim: Size
    # None in a request: it follows from the weights, but only the loaded model tells it.
    text_sha256: str | None = None


class Preprocessing(FrozenModel):
    """How pixels are prepared for the encoder."""

    size_px: int
    resize: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Identity(FrozenModel):
    """Everything that decides a feature's value.

    A request may leave ``batch_frames``, ``precision``, ``device`` and ``encoder.text_sha256`` open
    (None), since finding them out would need torch; the identity of a store has them all.
    """

    encoder: EncoderIdentity
    preprocessing: Preprocessing
    frames: Size
    evaluation_frames: str
    training_frames: str
    view_rule: str
    seed: Count
    decoder: str
    videos: str  # digest of the video list
    fold: str = "all"  # the fold whose training videos the encoder was trained on, if any
    batch_frames: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    precision: str | None = None
    device: str | None = None
    # The rule by which faces were cut out of the frames, if any.
    faces: str = WHOLE_FRAMES

    @model_serializer(mode="wrap")
    def _without_usual_faces(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        # Identities of whole frames stay as they were before there was this field.
        if fields.get("faces") == WHOLE_FRAMES:
            fields.pop("faces")
        return fields

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON; raises ValueError while a field is still open."""
        if self.still_open:
            raise ValueError(f"identity is not complete: {', '.join(self.still_open)}")
        return sha256(canonical_json(flatten(self.model_dump(mode="json"))))

    @property
    def still_open(self) -> list[str]:
        """The fields that are None."""
        return [n for n, value in flatten(self.model_dump(mode="json")).items() if value is None]


def differences(stored: Identity, asked: Identity) -> list[tuple[str, str, str]]:
    """(field, stored, asked) wherever the two differ; fields ``asked`` leaves open are skipped."""
    ours, theirs = (
        flatten(x.model_dump(mode="json")) | {"faces": x.faces} for x in (stored, asked)
    )
    return [
        (name, str(ours[name]), str(value))
        for name, value in theirs.items()
        if value is not None and ours[name] != value
    ]


def side_by_side(
    rows: list[tuple[str, str, str]],
    head: tuple[str, str, str] = ("field", "in the store", "asked for"),
) -> str:
    """Three columns: field, what the store has, what was asked for."""
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(2)]
    return "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in table)


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> one with dotted names."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat
