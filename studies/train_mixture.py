"""Trains a small mixture-of-experts language model on Python's reference, for figures about experts.

    python studies/train_mixture.py runs/mixture          about 3 minutes on one core

The folder is one that `BitAllocation` takes: an OLMoE of 3 blocks with 8 experts each, of which a token goes to 2, and
a tokenizer of 1,024 byte pairs. The loss includes transformers' load balancing, over all blocks together. The
model learns from the search split alone, so that validation and held-out text are new to it; the tokenizer saw all.
"""

import argparse
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from moopt.backend.text import Text

CONTEXT, BATCH = 256, 4
SHAPE = {
    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True,
    "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True,
    "output_router_logits": True, "router_aux_loss_coef": 0.01,
    "initializer_range": 0.05, "vocab_size": 1024, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def byte_pairs(text):
    """A tokenizer of the text's most frequent byte pairs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"], special_tokens=["<end>"], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator((document for source in text.documents for _, document in source), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def train(model, tokens, steps):
    """AdamW with one cycle of learning rates; prints the loss of predictions and of the router on the way."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    began = time.perf_counter()
    for step in range(steps):
        ids = tokens.draws("search", BATCH * CONTEXT, CONTEXT, step)
        found = model(input_ids=ids, labels=ids)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            balance = model.config.router_aux_loss_coef * found.aux_loss
            seconds = time.perf_counter() - began
            print(f"{step + 1:6}  {found.loss - balance:.3f}  {found.aux_loss:.3f}  {seconds:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    text = Text("prose")
    tokenizer = byte_pairs(text)
    tokens = text.tokenized(tokenizer)
    torch.manual_seed(0)
    model = OlmoeForCausalLM(OlmoeConfig(**SHAPE))
    print(f"{model.num_parameters():,} weights\n  step  loss   balance (2 is even over all blocks)")
    train(model, tokens, asked.steps)
    model.config.output_router_logits = False
    with torch.inference_mode():
        ids = tokens.batch("held-out", 0, 16_384, CONTEXT)
        loss = torch.stack([model.eval()(input_ids=part, labels=part).loss for part in ids.split(BATCH)]).mean()
    print(f"held-out perplexity {loss.exp():.1f}")
    model.save_pretrained(asked.folder)
    tokenizer.save_pretrained(asked.folder)


if __name__ == "__main__":
    main()
