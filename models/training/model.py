"""The two models in plain PyTorch: where training starts, and what step.cpp is checked against."""
import torch
from torch import nn
import torch.nn.functional as F

LAYERS, WIDTH, HEADS, CONTEXT = 4, 256, 4, 512
HEAD, ROTARY = WIDTH // HEADS, WIDTH // HEADS // 4


class Block(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.arch = arch
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def attend(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        if self.arch == "neox":
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, WIDTH))

    def forward(self, x, cos, sin):
        if self.arch == "neox":  # both branches read the same input
            return x + self.attend(self.ln1(x), cos, sin) + self.down(F.gelu(self.up(self.ln2(x))))
        x = x + self.attend(self.ln1(x), cos, sin)
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


def rotate(x, cos, sin):
    turned, rest = x[..., :ROTARY], x[..., ROTARY:]
    a, b = turned.chunk(2, -1)
    return torch.cat((turned * cos + torch.cat((-b, a), -1) * sin, rest), -1).to(x.dtype)


class Model(nn.Module):
    """Tokens [batch, time] and the tokens that follow them -> mean loss in nats."""

    def __init__(self, arch, vocab):
        super().__init__()
        self.arch = arch
        self.embed = nn.Embedding(vocab, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH) if arch == "gpt2" else None
        self.blocks = nn.ModuleList(Block(arch) for _ in range(LAYERS))
        self.ln = nn.LayerNorm(WIDTH)
        angle = torch.outer(torch.arange(CONTEXT), 10000.0 ** (-torch.arange(0, ROTARY, 2) / ROTARY)).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02 if "embed" in name or "positions" in name else WIDTH ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        for block in self.blocks:
            nn.init.zeros_(block.out.weight)
            nn.init.zeros_(block.down.weight)

    def forward(self, ids, targets):
        t = ids.shape[1]
        x = self.embed(ids)
        if self.positions is not None:
            x = x + self.positions.weight[:t]
        for block in self.blocks:
            x = block(x, self.cos[:t], self.sin[:t])
        logits = F.linear(self.ln(x), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
