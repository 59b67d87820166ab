"""How scripts written with `mindspore.mint.distributed` join the other processes: `import ms_omni.parallel as dist`."""

import warnings

from .mesh import start


def init_process_group(
    backend=None, init_method=None, timeout=None, world_size=-1, rank=-1, store=None, pg_options=None, device_id=None
):
    """Joins the processes that msrun started, as `start` does; the signature of `mindspore.mint.distributed`.

    The backend is the device's own, so that a script for Ascend runs on CPU too; another name gives a warning. msrun
    decides on the rest.
    """
    mesh = start()
    if backend not in (None, mesh.backend) and mesh.backend is not None:
        warnings.warn(
            f"the backend {backend!r} is not this device's; the processes talk through {mesh.backend!r}", stacklevel=2
        )
    given = {
        "init_method": (init_method, None),
        "timeout": (timeout, None),
        "world_size": (world_size, -1),
        "rank": (rank, -1),
        "store": (store, None),
        "pg_options": (pg_options, None),
        "device_id": (device_id, None),
    }
    ignored = [name for name, (value, default) in given.items() if value != default]
    if ignored:
        warnings.warn(f"init_process_group leaves {', '.join(ignored)} to msrun", stacklevel=2)
