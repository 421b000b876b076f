"""Continue a text with the weights of a checkpoint, in one process on the CPU."""

from pathlib import Path

import torch

from toolkit.checkpoint import layout
from toolkit.checkpoint.reader import TensorReader
from toolkit.config.schema import RunConfig
from toolkit.data.manifest import read_manifest
from toolkit.data.prepare.tokenizer import load_tokenizer
from toolkit.errors import CheckpointError
from toolkit.model.llama import Llama


def load_model(cfg: RunConfig, checkpoint_dir: Path) -> Llama:
    """Build the model with the weights of a checkpoint, in fp32."""
    model = Llama(cfg.model, seed=0, recompute=False)
    with torch.no_grad(), TensorReader(checkpoint_dir, layout.read_index(checkpoint_dir)) as reader:
        for name, parameter in model.named_weights():
            parameter.copy_(reader.read("weight", name))
    return model.eval()


def generate(
    cfg: RunConfig, checkpoints_dir: Path, *, prompt: str, num_tokens: int, temperature: float, seed: int
) -> str:
    """Continue a prompt; ends early at the end-of-text token.

    Args:
        cfg: the run's configuration.
        checkpoints_dir: the newest complete checkpoint is taken.
        prompt: text to continue.
        num_tokens: at most so many tokens are added.
        temperature: 0 takes the likeliest token each time.
        seed: of the draws.
    """
    newest = layout.newest(checkpoints_dir)
    if newest is None:
        raise CheckpointError(f"{checkpoints_dir} has no complete checkpoint\n  let the run save one first")
    dataset_dir = next(iter(cfg.data.weights))  # all datasets of a mixture have the same tokenizer
    tokenizer = load_tokenizer(dataset_dir)
    eos_id = read_manifest(dataset_dir).tokenizer.eos_id
    model = load_model(cfg, newest)
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids or [eos_id]
    for _ in range(num_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids[-cfg.data.seq_len :]]))[0, -1]
        chosen = _draw(logits, temperature=temperature, generator=generator)
        if chosen == eos_id:
            break
        ids.append(chosen)
    return str(tokenizer.decode(ids))


def _draw(logits_V: torch.Tensor, *, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial((logits_V / temperature).softmax(0), 1, generator=generator))
