"""Text output of `omniavatar train --plan`."""

from collections.abc import Iterator

from training.config import EngineConfig
from training.planning.plan import USABLE, Plan


def plan_lines(forecast: Plan) -> list[str]:
    """The forecast as lines of text."""
    return [
        *_head_lines(forecast),
        *_bucket_lines(forecast),
        *_memory_lines(forecast),
        *_time_lines(forecast),
        *_disk_lines(forecast),
    ]


def _head_lines(forecast: Plan) -> list[str]:
    size, config, device = forecast.parameters, forecast.config, forecast.device
    weights = f"{(size.frozen + size.trained) / 1e9:.4g} billion weights, {size.trained / 1e6:.1f} million trained"
    settings = (
        f"ZeRO stage {config.engine.stage}, gradient checkpointing {config.model.gradient_checkpointing}, autocast "
        f"{config.engine.autocast}, frozen weights {config.engine.frozen_dtype}"
        + "".join(f", {words}" for words in _sharing(config.engine))
    )
    lines = [
        f"model    {config.model.variant}: {weights}",
        f"devices  {forecast.ranks} x {device.name}: {device.flops / 1e12:.4g} TFLOP/s, {device.memory / 1e9:.1f} GB",
        f"engine   {settings}",
        f"clips    {sum(forecast.clips.sizes.values()):,}: {forecast.clips.source}",
    ]
    if forecast.micro_batches != config.data.micro_batches:
        lines.append(
            f"         planned with data.micro_batches={forecast.micro_batches}, not {config.data.micro_batches}: "
            "it has to be a multiple of the ranks that read data"
        )
    if config.engine.autocast == "none":
        lines.append("         without autocast a step takes longer than forecast: the peak is that of bfloat16")
    return lines


def _sharing(engine: EngineConfig) -> Iterator[str]:
    if engine.sequence_parallel > 1:
        yield f"{engine.sequence_parallel} ranks share each sample"
    if engine.hpz_ranks > 1:
        yield f"a second copy of the weights among {engine.hpz_ranks} ranks"
    if engine.offload_optimizer or engine.offload_parameters:
        offloaded = {"optimizer": engine.offload_optimizer, "weights": engine.offload_parameters}
        yield f"{' and '.join(name for name, is_offloaded in offloaded.items() if is_offloaded)} in host memory"


def _bucket_lines(forecast: Plan) -> list[str]:
    lines = ["", "window (pixels)        clips  batch   tokens   PFLOP a sample   memory   seconds a micro-batch"]
    for row in forecast.buckets:
        height, width, frames = row.bucket
        shape = f"{8 * height} x {8 * width}, {4 * frames - 3}"
        lines.append(
            f"{shape:<18}{row.clips:>10,}{row.batch:>7}{row.tokens:>9,}{row.work.executed / 1e15:>17.3g}"
            f"{row.memory.total / 1e9:>6.1f} GB{row.seconds:>24.3g}"
        )
    return lines


def _memory_lines(forecast: Plan) -> list[str]:
    held, device = forecast.largest.memory, forecast.device
    parts = {
        "frozen weights": held.frozen,
        "trained weights": held.trained,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "buffers": held.buffers,
        "kept activations": held.kept,
        "working": held.working,
    }
    verdict = "fits" if forecast.fits else "DOES NOT FIT"
    lines = [
        "",
        f"memory   {held.total / 1e9:.1f} GB of {USABLE * device.memory / 1e9:.1f} GB usable: {verdict}",
        "         " + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items()),
    ]
    if held.host:
        lines.append(f"         plus {held.host / 1e9:.2f} GB of host memory per rank")
    if not forecast.fits:
        change = forecast.change or "none known; use a device with more memory"
        lines.append(f"         the smallest change with which it fits: {change}")
    lines += [f"         faster, and still fits: {change}" for change in forecast.faster]
    return lines


def _time_lines(forecast: Plan) -> list[str]:
    lines = [
        f"time     {forecast.step_seconds:.3g} s a step of {forecast.micro_batches} micro-batches at "
        f"{100 * forecast.hfu:.0f} % of the peak (HFU: recomputation counts as work)",
        f"         {forecast.epoch_days:.2f} days an epoch of {forecast.steps_per_epoch:,} steps; "
        f"{forecast.run_days:.2f} days to the recipe's limit",
    ]
    if forecast.waiting > 0.005:
        lines.append(f"         {100 * forecast.waiting:.0f} % of it is spent waiting for ranks with larger windows")
    traffic = f"traffic  {forecast.received / 1e9:.2f} GB received by a rank each step"
    if forecast.traffic_seconds:
        traffic += f", {forecast.traffic_seconds:.2g} s, overlapped with computation at best"
    return [*lines, traffic]


def _disk_lines(forecast: Plan) -> list[str]:
    shards, checkpoint = forecast.clips.shard_bytes / 1e9, forecast.checkpoint_bytes / 1e9
    kept, export = forecast.config.checkpoint.keep, forecast.export_bytes / 1e9
    return [
        f"disk     shards {shards:,.2f} GB; checkpoint {checkpoint:.2f} GB, {kept} are kept; export {export:.2f} GB"
    ]
