"""The features of COLIPRI's encoders by the keys that objectives ask for."""

from __future__ import annotations

from collections.abc import Iterable

from VelvetMedLib.models.aligned_colipri import AlignedColipri
from VelvetMedLib.objectives.base import TEXT_CLEAN, Feature, StudyBatch, TextFeatures
from VelvetMedLib.objectives.encoding import encode
from VelvetMedLib.objectives.masked_image import IMAGE_MAE, KEPT
from VelvetMedLib.objectives.opposite_sentences import TEXT_OPPOSITE


@encode.register(AlignedColipri)
def _(model: AlignedColipri, batch: StudyBatch, keys: Iterable[str]) -> dict[str, Feature]:
    """Images give a pooled vector and cells, "image.mae" the states of its kept cells. A text that is compared is one pooled state,
    so that little waits where gradients are cached; any other text gives the states of its tokens."""
    features: dict[str, Feature] = {}
    for key in keys:
        if key == IMAGE_MAE:
            features[key] = model.kept_features(batch.images[key], batch.extras[KEPT])
        elif key.startswith("image."):
            features[key] = model.image_features(batch.images[key])
        else:
            layout = batch.texts[key]
            pooled = key in (TEXT_CLEAN, TEXT_OPPOSITE)
            features[key] = TextFeatures(model.text_state(layout) if pooled else model.text_states(layout.ids, layout.pad_mask))
    return features
