"""The training step in C++ (step.cpp): compiled on first use, called through ctypes on the tensors of model.Model."""
import ctypes, pathlib, subprocess
import torch
from model import CONTEXT, HEADS, LAYERS, WIDTH

here = pathlib.Path(__file__).parent


def build(folder):
    path = pathlib.Path(folder) / "step.so"
    if not path.exists() or path.stat().st_mtime < (here / "step.cpp").stat().st_mtime:
        sizes = [f"-D{k}={v}" for k, v in dict(WIDTH=WIDTH, HEADS=HEADS, CONTEXT=CONTEXT, LAYERS=LAYERS).items()]
        subprocess.run(["g++", "-O3", "-march=sapphirerapids", "-ffast-math", "-shared", "-fPIC", *sizes,
                        "-o", str(path), str(here / "step.cpp")], check=True)
    lib = ctypes.CDLL(str(path.resolve()))
    lib.step.restype = ctypes.c_double
    return lib


def parameters(model):
    """In the order of step.cpp."""
    out = [model.embed.weight, model.positions.weight if model.positions else None, model.ln.weight, model.ln.bias]
    for b in model.blocks:
        for part in (b.ln1, b.ln2, b.qkv, b.out, b.up, b.down):
            out += [part.weight, part.bias]
    return out


class Step:
    def __init__(self, model, folder, at_once=1):
        self.lib, self.params, self.at_once = build(folder), parameters(model), at_once
        self.neox, self.vocab = int(model.arch == "neox"), model.embed.weight.shape[0]
        for p in self.params:
            if p is not None:
                p.grad = torch.zeros_like(p)

    def __call__(self, ids, targets, backward=True):
        """Mean loss over the targets that are not negative; with `backward`, its gradient in every `grad`."""
        count = int((targets >= 0).sum())
        for p in self.params:
            if p is not None and backward:
                p.grad.zero_()
        array = ctypes.c_void_p * len(self.params)
        w = array(*(p.data_ptr() if p is not None else None for p in self.params))
        dw = array(*(p.grad.data_ptr() if p is not None else None for p in self.params)) if backward else None
        ids, targets = ids.contiguous(), targets.contiguous()
        loss = self.lib.step(self.neox, self.vocab, w, dw, ctypes.c_void_p(ids.data_ptr()), ctypes.c_void_p(targets.data_ptr()),
                             ids.shape[0], self.at_once, ctypes.c_float(1 / count))
        return loss / count

    def orthogonalized(self, g):
        """The nearest semi-orthogonal matrix, roughly."""
        g = g.float()
        x = (g.T if g.shape[0] > g.shape[1] else g).contiguous().clone()
        self.lib.orthogonalize(ctypes.c_void_p(x.data_ptr()), *x.shape)
        return x.T if g.shape[0] > g.shape[1] else x
