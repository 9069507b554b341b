"""Compares the loss and every gradient of step.cpp with PyTorch's in float32, and says how fast it is.

usage: check_step.py BUILD_DIR
"""
import sys, time
import torch
from model import CONTEXT, Model
from step import Step

VOCAB = 3584
torch.set_num_threads(1)
torch.manual_seed(0)
for arch in ("gpt2", "neox"):
    model = Model(arch, VOCAB)
    for p in model.parameters():  # away from the zeros of the start, so that every gradient matters
        p.data += 0.03 * torch.randn_like(p)
    step = Step(model, sys.argv[1])
    ids, targets = torch.randint(VOCAB, (2, CONTEXT)), torch.randint(VOCAB, (2, CONTEXT))
    targets[1, 500:] = -100
    loss = step(ids, targets)
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    expected = model(ids, targets)
    expected.backward()
    off = max(((found[n] - p.grad).norm() / p.grad.norm()).item() for n, p in model.named_parameters())
    print(f"{arch}: loss {loss:.4f}, expected {expected.item():.4f}; gradients differ by at most {100 * off:.1f} %")
    assert abs(loss - expected.item()) < 2e-3 and off < 0.03
    ids = torch.randint(VOCAB, (16, CONTEXT))
    start = time.process_time()
    step(ids, ids)
    print(f"{ids.numel() / (time.process_time() - start):.0f} tokens a second of processor time")
