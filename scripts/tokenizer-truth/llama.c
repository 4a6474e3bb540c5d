// llama.cpp's answers to what tokenizer/truth_test.go asks, on standard input and output, numbers as 32 bits:
//
//	llama VOCABULARY.gguf    length, text -> count, ids without special tokens; count, ids with them; length, those decoded
#include "llama.h"
#include <stdio.h>
#include <stdlib.h>

static void quiet(enum ggml_log_level level, const char *text, void *data) {
	if (level == GGML_LOG_LEVEL_ERROR)
		fputs(text, stderr);
}

static void put(const void *data, size_t size, int32_t n) {
	fwrite(&n, sizeof n, 1, stdout);
	fwrite(data, size, n, stdout);
}

int main(int argc, char **argv) {
	llama_log_set(quiet, NULL);
	struct llama_model_params params = llama_model_default_params();
	params.vocab_only = true;
	struct llama_model *model = argc == 2 ? llama_model_load_from_file(argv[1], params) : NULL;
	if (!model)
		return 1;
	const struct llama_vocab *vocab = llama_model_get_vocab(model);
	int32_t length;
	while (fread(&length, sizeof length, 1, stdin) == 1) {
		int32_t most = length + 16, n = 0;
		char *text = malloc(length + 1);
		llama_token *ids = malloc(most * sizeof *ids);
		if ((int32_t)fread(text, 1, length, stdin) != length)
			return 1;
		for (int special = 0; special < 2; special++) {
			n = llama_tokenize(vocab, text, length, ids, most, false, special);
			if (n < 0)
				return 1;
			put(ids, sizeof *ids, n);
		}
		int32_t room = 64 + 256 * n, used = 0;
		char *decoded = malloc(room);
		if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_SPM)
			used = llama_detokenize(vocab, ids, n, decoded, room, false, true);
		else // llama_detokenize would also tidy up spaces, which loses what was there
			for (int32_t i = 0; i < n; i++)
				used += llama_token_to_piece(vocab, ids[i], decoded + used, room - used, 0, true);
		put(decoded, 1, used);
		free(decoded), free(ids), free(text);
	}
	return 0;
}
