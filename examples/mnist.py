"""Train a small network on MNIST by hand: `python examples/mnist.py` (about a minute on two cores)."""

import argparse

import dlgpu
import dlgpu.functional as F
from dlgpu import data, nn, optim
from dlgpu.train import evaluate

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--images", type=int, help="use only so many")
few = slice(parser.parse_args().images)

dlgpu.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(16 * 5 * 5, 10),
)  # fmt: skip
print(net.summary((1, 1, 28, 28)))

adam = optim.Adam(net.parameters(), lr=1e-3)
train = data.DataLoader(data.mnist().subset(few), 100, shuffle=True)
test = data.DataLoader(data.mnist(train=False).subset(few), 500)
for epoch in range(3):
    for images, labels in train.epoch(epoch):
        adam.zero_grad()
        loss = F.cross_entropy(net(dlgpu.tensor(images)), labels)
        loss.backward()
        adam.step()
    print(f"epoch {epoch + 1}: test accuracy {evaluate(net, test)[1]:.2%}")
