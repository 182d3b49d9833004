"""Voice activity by Silero VAD (snakers4/silero-vad, MIT): how sure the network is of a voice, 31 times a second."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from perception.onnx_nets import open_network

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

HOP = 512  # samples, 32 ms: what each probability is about
CONTEXT = 64  # samples before them that a row begins with; without these the network hears nothing
STATE = (1, 1, 128)
BLOCK = 512  # rows a run


class VoiceDetector:
    """The network, over mono audio at 16 kHz."""

    def __init__(self, session: "InferenceSession") -> None:
        self._session = session

    def probabilities(self, wave: np.ndarray) -> np.ndarray:
        """Probability (ceil(n / 512),) float32 of a voice in every 512 samples of a wave (n,), zeros after its end."""
        count = -(-len(wave) // HOP)
        if not count:
            return np.zeros(0, np.float32)
        padded = np.pad(np.asarray(wave, np.float32), (CONTEXT, count * HOP - len(wave)))
        rows = sliding_window_view(padded, CONTEXT + HOP)[::HOP]
        parts = []
        h = c = np.zeros(STATE, np.float32)
        for start in range(0, count, BLOCK):
            # The state goes from block to block: a voice is told by what came before.
            part, h, c = self._session.run(None, {"input": rows[start : start + BLOCK], "h": h, "c": c})
            parts.append(part)
        return np.concatenate(parts)


def load_voice_detector(path: Path | str) -> VoiceDetector:
    """Read `silero_vad_16k_sequence.onnx`. OnnxError when the file is absent, unreadable or another network."""
    state = [STATE, STATE]
    rows = CONTEXT + HOP
    session = open_network(
        Path(path), "silero_vad_16k_sequence.onnx", inputs=[(None, rows), *state], outputs=[(None,), *state]
    )
    return VoiceDetector(session)
