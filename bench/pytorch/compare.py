#!/usr/bin/env python3
"""Training of one service's nets: Sage against PyTorch, in turn, on one thread each.

    pip install torch numpy
    cargo build --release --bins
    bench/pytorch/compare.py [--rows 2000] [--epochs 40] [--rounds 5]

Both train an encoder, a prior and a decoder of three fully connected layers (layer norm and ReLU between them, dropout
before the output layer, which sees the inputs too), with the same sizes, batches, loss, clipping and optimiser. PyTorch
gets its rows standardised and on its own tensors beforehand. Prints the median and the range over the rounds.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import time

import torch
from torch import nn
from torch.nn import functional as F

LATENT, BATCH, RATE, ALPHA, BETA, DROPOUT = 4, 128, 3e-3, 0.7, 0.1, 0.1


class Mlp(nn.Module):
    """Two hidden layers and an affine output that also sees the inputs."""

    def __init__(self, size, hidden, out):
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(size, hidden), nn.LayerNorm(hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(DROPOUT),
        )
        self.out = nn.Linear(hidden + size, out)

    def forward(self, x):
        return self.out(torch.cat([self.hidden(x), x], 1))


class Cvae(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        hidden = min(max((inputs + outputs) // 2, 24), 64)
        self.encoder = Mlp(inputs + outputs, hidden, 2 * LATENT)
        self.prior = Mlp(inputs, hidden, 2 * LATENT)
        self.decoder = Mlp(inputs + LATENT, hidden, outputs)

    def loss(self, x, y):
        q_mean, q_var = self.encoder(torch.cat([x, y], 1)).chunk(2, 1)
        p_mean, p_var = self.prior(x).chunk(2, 1)
        q_var, p_var = q_var.clamp(-8, 8), p_var.clamp(-8, 8)
        divergence = 0.5 * (p_var - q_var + ((q_var - p_var).exp()) + (q_mean - p_mean) ** 2 * (-p_var).exp() - 1)
        total = ALPHA * BETA * divergence.sum(1).mean()
        for mean, var, weight in ((q_mean, q_var, ALPHA), (p_mean, p_var, 1 - ALPHA)):
            z = mean + (0.5 * var).exp() * torch.randn_like(mean)
            total = total + weight * F.huber_loss(self.decoder(torch.cat([x, z], 1)), y)
        return total


def train(rows, inputs, outputs, epochs):
    """Seconds of training on this thread."""
    torch.manual_seed(0)
    x, y = torch.rand(rows, inputs) * 3.4 - 1.7, torch.rand(rows, outputs) * 3.4 - 1.7
    began = time.perf_counter()
    net = Cvae(inputs, outputs)
    adam = torch.optim.Adam(net.parameters(), lr=RATE)
    steps = epochs * -(-rows // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, total_steps=steps, pct_start=0.3)
    for _ in range(epochs):
        for batch in torch.randperm(rows).split(BATCH):
            adam.zero_grad(set_to_none=True)
            net.loss(x[batch], y[batch]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            adam.step()
            cycle.step()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 2000), ("inputs", 34), ("outputs", 48), ("epochs", 40), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = pathlib.Path(__file__).resolve().parents[2]
    binary = root / "target/release/sage-bench"
    if not binary.exists():
        parser.error(f"{binary} does not exist: cargo build --release --bins")
    command = [str(binary), "training", "--json"]
    for name in ("rows", "inputs", "outputs", "epochs"):
        command += [f"--{name}", str(getattr(args, name))]
    sage, floor, torch_s = [], [], []
    train(256, args.inputs, args.outputs, 1)  # PyTorch's own first-use costs do not count
    for turn in range(args.rounds):
        measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        sage.append(measured["train_s"])
        floor.append(measured["matrix_products_s"])
        torch_s.append(train(args.rows, args.inputs, args.outputs, args.epochs))
        print(f"round {turn + 1}: Sage {sage[-1]:.2f} s, PyTorch {torch_s[-1]:.2f} s", flush=True)
    for name, seconds in (("Sage", sage), ("matrix products", floor), (f"PyTorch {torch.__version__}", torch_s)):
        print(f"{name:22} median {statistics.median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"PyTorch takes {statistics.median(torch_s) / statistics.median(sage):.1f} times as long; "
          f"Sage takes {statistics.median(sage) / statistics.median(floor):.1f} times its matrix products")


if __name__ == "__main__":
    main()
