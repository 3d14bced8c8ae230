"""What a store was made from: one digest, and the fields that differ."""

import signal
from typing import Any

import pytest
from pydantic import SerializerFunctionWrapHandler, model_serializer

from cache.identity import Identity, differences, side_by_side
from support.tiny import make_plan

DIGEST = "0ec5a4c913d6f65e7067328714ab18d3767a5a1036bae153d2efe2f053a50aff"


def changed(identity: Identity, **fields: object) -> Identity:
    return Identity.model_validate(identity.model_dump() | fields)


def test_every_field_changes_the_digest() -> None:
    identity = make_plan().identity
    others = {
        name: changed(identity, **{name: value})
        for name, value in {
            "encoder": identity.encoder.model_copy(update={"weights_sha256": "cd"}),
            "preprocessing": identity.preprocessing.model_copy(update={"size_px": 33}),
            "frames": 5,
            "evaluation_frames": "x",
            "training_frames": "x",
            "view_rule": "x",
            "seed": 1,
            "decoder": "x",
            "batch_frames": 16,
            "videos": "x",
            "fold": "1",
            "precision": "bf16",
            "device": "cuda",
            "faces": "crop",
        }.items()
    }
    assert set(others) == set(Identity.model_fields)
    assert len({identity.digest, *(other.digest for other in others.values())}) == len(others) + 1


def test_digest_does_not_drift() -> None:
    assert changed(make_plan().identity, videos="x").digest == DIGEST


def test_differences_are_shown_side_by_side() -> None:
    stored = make_plan().identity
    encoder = stored.encoder.model_copy(update={"name": "ViT-B-32"})
    rows = differences(stored, changed(stored, encoder=encoder, seed=9))
    assert rows == [("encoder.name", "tiny", "ViT-B-32"), ("seed", "0", "9")]
    assert side_by_side(rows).splitlines()[1] == "  encoder.name  tiny          ViT-B-32"


def test_open_fields_of_a_request_are_not_compared_and_have_no_digest() -> None:
    stored = make_plan().identity
    asked = changed(stored, precision=None, device=None)
    assert differences(stored, asked) == []
    with pytest.raises(ValueError, match="precision, device"):
        _ = asked.digest


def test_ctrl_c_while_an_identity_is_written_stays_a_keyboard_interrupt() -> None:
    class Interrupted(Identity):
        @model_serializer(mode="wrap")
        def _interrupted(self, _serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
            signal.raise_signal(signal.SIGINT)
            return {}

    interrupted = Interrupted.model_validate(make_plan().identity.model_dump())
    with pytest.raises(KeyboardInterrupt):
        interrupted.model_dump(mode="json")
