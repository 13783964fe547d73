"""The tokenizer as pretraining needs it: text to ids, special ids by name, a fingerprint.

`loading` reads one from wherever it is; `words` tells where words begin; `coverage` what it cannot
encode; `template` whether it frames text as training does; `extension` adds tokens to one. Uses
`tokenizers` alone and never torch.
"""

from tessera.tokenizer.loading import (
    NEEDED_ROLES,
    ROLES,
    TOKENIZER_FILES,
    Tokenizer,
    files_for_transformers,
    load_tokenizer,
    special_tokens,
    token_dtype,
    tokenizer_of,
)

__all__ = [
    "NEEDED_ROLES",
    "ROLES",
    "TOKENIZER_FILES",
    "Tokenizer",
    "files_for_transformers",
    "load_tokenizer",
    "special_tokens",
    "token_dtype",
    "tokenizer_of",
]
