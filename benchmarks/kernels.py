"""The kernels that take the most time in a gradient."""

import torch
from bench import Bench
from gradients import Setting, objective
from limits import low_dtypes
from rich.console import Console
from timing import Title, wait
from torch.profiler import ProfilerActivity, profile

BLOCKS, ROWS = 4, 24


def kernels(bench: Bench, model: str, batch_size: int, console: Console) -> None:
    """Print the kernels of a few blocks in the lowest precision of the device, with ``--compile`` also compiled."""
    device, dtype = bench.device, [torch.float32, *low_dtypes(bench.device)][-1]
    activities, order = [ProfilerActivity.CPU], "self_cpu_time_total"
    if device.type == "cuda":
        activities, order = [*activities, ProfilerActivity.CUDA], "self_device_time_total"
    for compiled in (False, True) if bench.options.compile else (False,):
        setting = Setting(dtype=dtype, compiled=compiled)
        evaluate = objective(bench, model, batch_size, setting, samples=BLOCKS * batch_size).evaluate
        evaluate()  # warm-up, in which cuDNN times its algorithms
        wait(device)
        with profile(activities=activities) as profiled:
            evaluate()
            wait(device)
        console.print(f"{Title('kernels', model, batch_size)}: {setting.name}", highlight=False)
        table = profiled.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        console.print(table, highlight=False, markup=False, soft_wrap=True)
