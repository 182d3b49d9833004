"""The model roles of a recipe: the one list of what `models:` may name, and what becomes of a run without each."""

from collections.abc import Mapping

MODEL_ROLES: Mapping[str, str] = {
    "transformer": "no training, no generation",
    "vae": "no latents, so no training and no generation",
    "text_encoder": "no latents, so no training and no generation",
    "tokenizer": "no latents, so no training and no generation",
    "scheduler": "nothing is missing, the noise schedule is the recipe's",
    "adapter": "training starts from a fresh one",
    "audio_encoder": "no latents, so no training and no generation",
    "captioner": "clips without a caption of their own get the recipe's",
    "face_detector": "OpenCV's frontal-face cascade looks for faces",
    "active_speaker": "lips and sound alone say who of several people speaks",
    "face_identity": "no likeness of faces, no split of the data by person",
    "pose": "no points of body and hands",
    "sync_scorer": "clips stay pending, no Sync-C and Sync-D",
    "quality_scorer": "clips stay pending, no IQA and ASE",
    "fid_features": "no FID",
    "fvd_features": "no FVD",
}
