"""`train.compile=true` computes the same; marked long: compiling takes most of a minute."""

import pytest
import torch
import torch.nn.functional as F

from delving.build import build_model, materialise
from delving.config import compose
from delving.step import seed_dropout
from delving.train import compile_net


def gradients(net, forward):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 28, 28, generator=draws).contiguous(memory_format=torch.channels_last)
    net.train().zero_grad()
    seed_dropout(net, (0, 0), batch=8, rows=slice(0, 8))
    with torch.autocast("cpu", torch.bfloat16):
        logits = forward(x)
    F.cross_entropy(logits.float(), torch.arange(8) % 4).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.long
def test_the_compiled_net_has_the_eager_nets_gradients():
    config = compose(["scale=smoke"])
    net = materialise(build_model(config, 4)[0], config, torch.device("cpu"))
    eager, compiled = gradients(net, net), gradients(net, compile_net(net))
    for name, gradient in eager.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=2e-2, atol=1e-4)
