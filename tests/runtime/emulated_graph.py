"""A CUDA graph, emulated on a CPU: what a step asks of torch is written down, and done again without its Python.

As in a graph, numbers of Python are frozen, and tensors keep their places: what an operation made anew is made into the
same memory by each replay. Recording leaves no trace in tensors that were there before. What waits for a device is
refused.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = {
    "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::unique",
    "aten::_unique2", "aten::masked_select", "aten::lift_fresh", "aten::_pin_memory",
}  # fmt: skip
"""What the host cannot do before the device is done; a tensor of Python's numbers is copied from memory of the host."""
EMPTY = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
}
SENDS = {"c10d::send"}


class EmulatedRecorder:
    """A recorder, as of CUDA graphs."""

    def __init__(self):
        self.recordings = []
        self.warmed_up = 0

    def warm_up(self, step):
        self.warmed_up += 1
        return step()

    def record(self, step):
        recording = EmulatedRecording()
        with recording:
            outputs = step()
        recording.restore()
        self.recordings.append(recording)
        return outputs, recording


class EmulatedRecording(TorchDispatchMode):
    """Every operation, with its tensors, which stay alive."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.made = set()
        self.before = {}
        self.replays = 0
        self.is_closed = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name
        if name in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        is_writing = function._schema.is_mutable or name.startswith("c10d::")
        if is_writing:
            for x in given:
                if place(x) not in self.made and place(x) not in self.before:
                    self.before[place(x)] = x.untyped_storage(), x.untyped_storage().clone()
        result = function(*args, **kwargs)
        places = {place(x) for x in given}
        new = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.made.update(place(x) for x in new if place(x) not in places)
        has_views_only = all(place(x) in places for x in new)
        if name not in EMPTY and (is_writing or not has_views_only):
            self.operations.append((function, args, kwargs, result))
        else:
            self.operations.append((None, args, kwargs, result))  # keeps memory that others use
        return result

    def restore(self):
        for storage, before in self.before.values():
            storage.copy_(before)
        self.before.clear()

    def replay(self):
        self.replays += 1
        sent = []
        for function, args, kwargs, result in self.operations:
            if function is None:
                continue
            again = function(*args, **kwargs)
            for work in tree_leaves(again):
                if isinstance(work, torch.ScriptObject):  # a communication
                    sent.append(work) if function._schema.name in SENDS else work.wait()
            if not function._schema.name.startswith("c10d::"):
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and place(old) != place(new):
                        old.copy_(new)
        for work in sent:
            work.wait()

    def close(self):
        self.is_closed = True


def place(x):
    return x.untyped_storage()._cdata
