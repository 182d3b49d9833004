"""Forecast of a generation before any weight is there: memory mode, peak memory and time on a named card or on all."""

import math
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.constants import FPS
from omniavatar.config import GenerateConfig
from omniavatar.planning.job import job_for
from omniavatar.planning.memory import Job, transformer_bytes
from omniavatar.planning.modes import CHOSEN, MODES, ON_CPU, USABLE, Fit, fits_of, free_host_memory
from omniavatar.planning.network import Networks
from omniavatar.video.chunks import Chunk, frames_to_remake, plan_chunks
from training.planning.devices import GIB, Device, named_device
from training.planning.flops import work

UTILISATION = 0.5  # of the peak, by the transformer; the authors' table of one A800 is 0.58
CONVOLUTION_UTILISATION = 0.25  # by the VAE
TRANSFER = 0.8  # of the host link's rate
CONTEXT = 0.7e9  # bytes of a card that its context and a desktop take
ENCODE_WORK, DECODE_WORK = 5.06e6, 8.5e6  # operations a pixel and frame, of Wan2.1's VAE with 96 channels
AUDIO_WORK = 15e9  # operations a second of audio, of wav2vec2
ASSUMED_HOST = 64e9  # bytes of host memory beside a named card


@dataclass(frozen=True)
class Forecast:
    """The plan for one card: the mode with its memory, the settings it needs beside, seconds of the whole video; or
    `problem`, why no mode fits and what would help."""

    device: Device
    fit: Fit
    job: Job
    tokens: int  # max_tokens with which it fits, 0: the recipe's
    seconds: float
    problem: str = ""


def forecast_video(
    config: GenerateConfig,
    networks: Networks,
    device: Device,
    host: float,
    seconds: float,
    image: tuple[int, int] | None = None,
) -> Forecast:
    """The fastest mode that fits `device`, with `host` free bytes of the machine, for a video of `seconds`.

    Exact weights first, then 8 bits, then shorter chunks.
    """
    for share in (1.0, 0.8, 0.6, 0.4):
        tokens = 0 if share == 1 else int(config.max_tokens * share)
        shorter = replace(config, max_tokens=tokens or config.max_tokens)
        job = job_for(shorter, image, seconds)
        if tokens and job.frames < 2 * config.overlap:
            break  # such chunks are mostly what they share
        found = next((fit for fit in _fits(shorter, networks, device, host, job) if fit.fits), None)
        if found is not None:
            return Forecast(device, found, job, tokens, _seconds(shorter, networks, device, found, job))
        if config.chunk_frames:
            break
    job = job_for(config, image, seconds)
    tried = list(_fits(config, networks, device, host, job))
    smallest = min(tried, key=lambda fit: (not fit.on_device, fit.host if fit.on_device else fit.device))
    return Forecast(device, smallest, job, 0, math.inf, _why_not(smallest, device, host))


def _fits(config: GenerateConfig, networks: Networks, device: Device, host: float, job: Job) -> Iterator[Fit]:
    gpu = device.host_link > 0
    modes = tuple(MODES) if gpu else ON_CPU
    half = gpu if config.load.dtype == "auto" else config.load.dtype == "bf16"
    named = config.load.memory
    if named != "auto":
        modes = (named,)
    elif gpu:  # those that "auto" chooses from, then 8 bits
        modes = (*CHOSEN, "int8", "int8_offloaded")
    return fits_of(networks, config.load, job, device.memory - CONTEXT if gpu else 0, host, half, modes)


def _why_not(fit: Fit, device: Device, host: float) -> str:
    if not fit.on_device:
        room = USABLE * (device.memory - CONTEXT) / 1e9
        return (
            f"does not fit: {fit.mode} needs {fit.device / 1e9:.1f} GB of the {room:.1f} GB usable; smaller height and "
            "width, or a card with more memory"
        )
    help_ = "more host memory, or a card with more memory"
    if not device.host_link:
        help_ = "generate.load.dtype=bf16 halves it" if fit.load.dtype != "bf16" else "more memory, or a GPU"
    return (
        f"does not fit the host: {fit.mode} needs {fit.host / 1e9:.1f} GB of host memory, {USABLE * host / 1e9:.1f} GB "
        f"are usable; {help_}"
    )


def _seconds(config: GenerateConfig, networks: Networks, device: Device, fit: Fit, job: Job) -> float:
    """Seconds of the whole video; weights that are offloaded are copied while the blocks run."""
    peak = device.flops * UTILISATION
    net = replace(networks.transformer, variant="frozen_dit") if config.load.merge else networks.transformer
    copied = 0.0
    if fit.load.offload == "blocks":
        copied = transformer_bytes(net, fit.load, 2).block * net.layers / (TRANSFER * device.host_link)
    passes, computed = job.branches / job.batched * config.steps, 0.0
    chunks = _chunks(config, job)
    for chunk in chunks:
        tokens = chunk.latent_frames * (job.height // 16) * (job.width // 16)
        forward = work(net, tokens, chunk.latent_frames).forward * job.batched / peak
        computed += passes * max(forward, copied)
    pixels = (
        job.height * job.width * sum(DECODE_WORK * chunk.frames + ENCODE_WORK * chunk.prefix_frames for chunk in chunks)
    )
    vae = pixels * (networks.vae.base / 96) ** 2 / (device.flops * CONVOLUTION_UTILISATION)
    text = 2 * networks.text.weights * 2 * job.prompt_tokens / peak
    streamed = 2 * networks.text.weights / (TRANSFER * device.host_link) if fit.load.text_encoder == "streamed" else 0.0
    return computed + vae + text + (streamed if device.host_link else 0.0) + AUDIO_WORK * job.seconds / peak


def _chunks(config: GenerateConfig, job: Job) -> list[Chunk]:
    remade = frames_to_remake(config.blend, job.frames, config.overlap)
    frames = max(1, math.ceil(job.seconds * FPS))
    return plan_chunks(frames, job.frames, config.overlap, remade, config.full_last_chunk)


def local_device() -> Device:
    """The first GPU that the driver reports, else this CPU with a speed measured now; without importing torch.

    Raises InputError for a GPU without figures.
    """
    found = shutil.which("nvidia-smi")
    if found:
        query = [found, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
        if answer.returncode == 0 and answer.stdout.strip():
            name, _, mebibytes = answer.stdout.splitlines()[0].rpartition(",")
            return replace(named_device(name.strip()), memory=float(mebibytes) * 2**20)
    side, best = 512, math.inf
    matrix = np.ones((side, side), np.float32)
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return Device("this CPU", 2 * side**3 / best, free_host_memory(), 0.0)


def plan_lines(forecast: Forecast, config: GenerateConfig, networks: Networks, host: float) -> list[str]:
    """The plan for one card as text."""
    device, job, fit = forecast.device, forecast.job, forecast.fit
    net = networks.transformer
    lines = [
        f"model    {net.layers} blocks of width {net.width}, text encoder of {networks.text.weights / 1e9:.2f} billion",
        f"device   {device.name}: {device.flops / 1e12:.4g} TFLOP/s"
        + (f", {device.memory / 1e9:.1f} GB" if device.host_link else "")
        + f"; {host / 1e9:.1f} GB of host memory",
        f"job      {job.seconds:g} s of video at {job.height} x {job.width}, {job.frames} frames a chunk, "
        f"{config.steps} steps of {job.branches} branches",
    ]
    if forecast.problem:
        return [*lines, f"mode     {forecast.problem}"]
    lines.append(f"mode     {_mode(forecast)}")
    lines.append(f"memory   {fit.needs()}")
    lines += [
        f"         {stage.name:<20}"
        + (f"{stage.device / 1e9:6.1f} GB GPU" if device.host_link else "")
        + f"{stage.host / 1e9:6.1f} GB host"
        for stage in fit.stages
    ]
    lines.append(
        f"time     {forecast.seconds / job.seconds:,.0f} s a second of video, {_duration(forecast.seconds)} in all, at "
        f"{100 * UTILISATION:.0f} % of the peak"
    )
    return lines


def table_lines(forecasts: Sequence[Forecast]) -> list[str]:
    """One line for each card: mode, peak memory, time."""
    lines = [f"{'card':<24}{'GiB':>5}  {'mode':<17}{'GPU GB':>7}{'host GB':>9}{'s per s':>9}{'in all':>10}"]
    for each in forecasts:
        name = f"{each.device.name:<24}{each.device.memory / GIB:>5.0f}  "
        if each.problem:
            lines.append(name + each.problem)
            continue
        row = f"{each.fit.mode:<17}{each.fit.device / 1e9:>7.1f}{each.fit.host / 1e9:>9.1f}"
        row += f"{each.seconds / each.job.seconds:>9,.0f}{_duration(each.seconds):>10}"
        lines.append(name + row + (f"  max_tokens={each.tokens}" if each.tokens else ""))
    return lines


def _mode(forecast: Forecast) -> str:
    load, words = forecast.fit.load, []
    if load.text_encoder == "streamed":
        words.append("text encoder streamed from its file")
    if load.offload == "blocks":
        words.append("blocks in host memory")
    if load.tiled_vae:
        words.append(f"VAE in tiles of {load.largest_tile} latents")
    if load.quantize != "none":
        words.append("weights of the blocks in 8 bits")
    if forecast.tokens:
        words.append(f"set generate.max_tokens={forecast.tokens}")
    # "auto" keeps weights exact, so 8 bits have to be asked for.
    asked = f" (set generate.load.memory={forecast.fit.mode})" if load.quantize != "none" else ""
    return f"{forecast.fit.mode}{asked}: {', '.join(words) or 'all networks on the device'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
