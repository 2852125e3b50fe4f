"""A random tiny Llama in the file layout of meta-llama/Llama-2-7b-hf, for the local hub."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

import torch
from local_hub import Repo
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA = "meta-llama/Llama-2-7b-hf"
VOCABULARY = 768
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
TEXT = """\
Below is an instruction that describes a task. Write a response that completes the request.
### Instruction: ### Response: Let's think step by step.
Question: What is the capital of France? Answer: Paris
Question: Who wrote the play that is the first of three? Answer: nobody knows
A farmer has 12 apples and buys 30 more. How many apples does he have? 12 + 30 = 42 #### 42
The answer is: \\boxed{42}. We have x = 3 and y = 7, therefore x + y = 10.
def add(first, second):
    \"\"\"Return the sum of two numbers.\"\"\"
    return first + second
for number in range(10): print(number, number * number, end=" ")
assert add(1, 2) == 3 and add(-1, 1) == 0
if value is None or len(values) == 0: raise ValueError("there are no values")
Write a poem of three lines in lower case, without commas, about the sea and the wind.
The committee voted on Monday to approve the budget of the city for the coming year.
Which of these statements follows from the passage? A. the first B. the second C. the third
sentiment: positive negative neutral; this film is a delight from the beginning to the end
"""
# As Llama 2's chat models have it, without the system part.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def repos() -> dict[str, Repo]:
    """Return the model's repository, gated as the real one is only where a test says so."""
    return {f"models/{LLAMA}": Repo([llama_files()])}


@functools.cache
def llama_files(seed: int = 0) -> Mapping[str, bytes]:
    """Return the files of a commit; another seed is another model with the same tokenizer."""
    files = _weights(seed)
    files["tokenizer.json"] = _tokenizer().to_str(pretty=True).encode()
    texts = {
        "config.json": _config().to_json_string(),
        "generation_config.json": _json({"bos_token_id": 1, "eos_token_id": 2, "do_sample": True}),
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": True,
                "add_eos_token": False,
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "legacy": False,
                "clean_up_tokenization_spaces": False,
                "model_max_length": 4096,
                "chat_template": CHAT_TEMPLATE,
            }
        ),
        "special_tokens_map.json": _json(
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        ),
        "README.md": "---\nlicense: llama2\npipeline_tag: text-generation\n---\n# A tiny Llama\n",
        "LICENSE.txt": "none\n",
    }
    files |= {name: text.encode() for name, text in texts.items()}
    files["pytorch_model-00001-of-00001.bin"] = b"a pickle, which is never fetched"
    return files


def _config() -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        dtype="float16",
    )


def _weights(seed: int) -> dict[str, bytes]:
    """Return the weights in two shards with their index."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = LlamaForCausalLM(_config()).half().state_dict()
    names = sorted(state)
    files, index = {}, {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        files[name] = save({key: state[key].contiguous() for key in part}, {"format": "pt"})
        index |= dict.fromkeys(part, name)
    size = sum(tensor.numel() * 2 for tensor in state.values())
    written = {"metadata": {"total_size": size}, "weight_map": index}
    return {**files, "model.safetensors.index.json": _json(written).encode()}


def _tokenizer() -> Tokenizer:
    """Return rules of Llama 2's kind: pieces with their space, and bytes for what is unknown."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner = Tokenizer(models.BPE())
    learner.normalizer = spaces
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - 256, show_progress=False, max_token_length=12
    )
    words = [" ".join(line.split()) for line in TEXT.splitlines()]
    learner.train_from_iterator([word for line in words for word in line.split()], trainer)
    learned = json.loads(learner.to_str())["model"]
    vocabulary = SPECIAL | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in learned["vocab"]:
        vocabulary[piece] = len(vocabulary)
    rules = Tokenizer(
        models.BPE(
            vocabulary,
            [tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    rules.normalizer = spaces
    rules.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    rules.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    rules.add_special_tokens(list(SPECIAL))
    return rules


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
