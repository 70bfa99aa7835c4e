"""Beam search of a decoder-only generator next to transformers' generate: seconds, in turns.

    python -m benchmarks.decoding.decode_causal [--out FILE] [--quick]

A Llama of SmolLM2-135M's sizes with random weights in fp32, 4 contexts of one length, 4 beams, no answer ends early.
Each context is a question with one passage: then both sides search the same distribution, and find the same tokens.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common.figures import finish
from benchmarks.common.system import prepare_machine
from benchmarks.decoding.decode import alternating, asked_for
from openbook.data.prompts import Prompt
from openbook.inference.rag_token import rag_token_beams
from openbook.models.attention import implementation
from openbook.models.decoder_only.model import DecoderOnlyGenerator

CONTEXTS, BEAMS, START, END, PAD = 4, 4, 7, 0, 1
SIZES = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
QUICK = {"hidden_size": 36, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 9}


def main() -> None:
    asked = asked_for(__doc__).parse_args()
    prepare_machine()
    torch.manual_seed(0)
    context_len, target_len, vocab = (11, 4, 311) if asked.quick else (200, 16, 49152)
    sizes = {"vocab_size": vocab, "num_key_value_heads": 3, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**(QUICK if asked.quick else SIZES), **sizes)).eval()
    generator = DecoderOnlyGenerator(model)
    generator.follow(Prompt(((START,),), (), frozenset(), END, PAD))
    ids = torch.randint(4, vocab, (CONTEXTS, context_len))
    prompts = torch.cat([ids, torch.full((CONTEXTS, 1), START)], 1)

    def ours() -> list[list[int]]:
        alone = torch.zeros(CONTEXTS, 1)
        found = rag_token_beams(generator, ids, ids >= 0, alone, BEAMS, target_len, target_len)
        return [list(one[0].token_ids) for one in found]

    def theirs() -> list[list[int]]:
        """With the attention that transformers would choose itself."""
        model.set_attn_implementation("sdpa")
        written = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            num_beams=BEAMS,
            min_new_tokens=target_len,
            max_new_tokens=target_len,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            eos_token_id=END,
            pad_token_id=PAD,
        )
        model.set_attn_implementation(implementation())
        return written[:, prompts.shape[1] :].tolist()

    assert ours() == theirs()
    seconds = alternating({"ours": ours, "theirs": theirs}, asked.repeats)
    found = {f"decode.causal.seconds_{side}": value for side, value in seconds.items()}
    finish(asked, found | {"decode.causal.speedup": seconds["theirs"] / seconds["ours"]})


if __name__ == "__main__":
    main()
