"""Small networks of every kind that the tests of `toyld.influence` observe, in float64."""

import torch
from torch import nn

V, T = 5, 6


class Block(nn.Module):
    """Token and position embeddings, LayerNorm, causal attention, MLP; the head is the embedding where `tied`."""

    def __init__(self, *, tied: bool, d: int = 8):
        super().__init__()
        self.embed, self.place = nn.Embedding(V, d), nn.Parameter(torch.randn(T, d))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.head = nn.Linear(d, V, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        h = self.embed(tokens) + self.place[: tokens.shape[1]]
        q, k, v = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in self.qkv(self.norms[0](h)).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(attended.transpose(1, 2).flatten(2))
        h = h + self.mlp(self.norms[1](h))
        return self.head(self.norms[2](h))


def _mlp(*, dropout: float = 0.0, activation: type = nn.Tanh) -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 12), activation(), nn.Dropout(dropout), nn.Linear(12, 12), activation(), nn.Linear(12, V)
    )


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, V),
    )  # fmt: skip


class LoRA(nn.Module):
    """A frozen linear layer with a trained product of rank 2 beside it."""

    def __init__(self, of: nn.Linear):
        super().__init__()
        self.of = of.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, of.in_features) / 2)
        self.lora_B = nn.Parameter(torch.randn(of.out_features, 2) / 2)

    def forward(self, x):
        return self.of(x) + x @ self.lora_A.T @ self.lora_B.T


def _frozen_trunk() -> nn.Module:
    net = _mlp()
    net[:-1].requires_grad_(False)
    return net


def _lora() -> nn.Module:
    net = _mlp().requires_grad_(False)
    net[3] = LoRA(net[3])
    return net


def _normed() -> nn.Module:
    net = nn.Sequential(nn.Linear(7, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, V))
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2.0)
    return net.eval()


MAKE = {
    "mlp": _mlp,
    "mlp-relu": lambda: _mlp(activation=nn.ReLU),
    "lenet": _lenet,
    "attention": lambda: Block(tied=False),
    "tied": lambda: Block(tied=True),
    "dropout-in-eval": lambda: _mlp(dropout=0.5).eval(),
    "batchnorm-in-eval": _normed,
    "frozen-trunk": _frozen_trunk,
    "lora": _lora,
}


def network(name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network, three observed inputs, two taught inputs and their labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MAKE[name]().double()
        if name in ("attention", "tied"):
            observed, taught = torch.randint(V, (3, T)), torch.randint(V, (2, T))
            labels = torch.randint(V, (2, T))
            labels[0, :2] = -100  # a prompt, which is not taught
            return net, observed, taught, labels
        shape = (1, 6, 6) if name == "lenet" else (7,)
        x = torch.randn(5, *shape, dtype=torch.float64)
        return net, x[:3], x[3:], torch.randint(V, (2,))
