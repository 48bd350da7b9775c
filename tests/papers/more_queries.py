"""Sixty more questions, in other words than the catalogue's, written before search was changed.

The rows are `random.Random(2027).sample(rows, 60)` of those that no earlier question is after. Do
not reword a question to make it pass.
"""

MORE = {
    "mhac_tourism": "forecast how many visitors come to a place each day",
    "transformer": "the original encoder-decoder with sine positions everything is compared with",
    "verbatim_recall": "does a language model remember a list of nouns word for word",
    "consciousness_prior": "a narrow workspace that broadcasts a few selected ideas",
    "rcmha": "put small depthwise convolutions on q, k and v of transformer-xl",
    "dagcd": "make the answer stick to the retrieved document by boosting words heads point at",
    "random_feature_attention_theory": "sample complexity of one layer when query-key weights "
    "are frozen at random",
    "pause_tuning": "insert a wait symbol behind each paragraph so the middle is not lost",
    "disendiff": "learn several new words from one photo without mixing up their masks",
    "yollava": "teach a chat model with eyes to recognize my dog from a few snapshots",
    "lama_low_rank_attention": "text classification with one query vector and factorized "
    "bilinear heads over a GRU",
    "monotonic_location_attention": "seq2seq that extrapolates to long inputs by moving a "
    "gaussian along the source",
    "dca_gmm_attention": "text to speech alignment that does not break on very long sentences",
    "mqar_zoology": "why do gated convolutions lag behind attention at looking up pairs",
    "sha_rnn": "lstm language model with only a single attention head that nearly catches up",
    "acorm": "teams of starcraft units that specialise into jobs",
    "recycled_attention": "alternate expensive and cheap decode steps, reusing the last top keys",
    "sparse_attention_decomposition": "svd of the query-key product to find who sent the signal "
    "a head reads",
    "order_in_the_court": "do lime and integrated gradients rank the same words",
    "ouroboros_diffusion": "endless video generation with a first-in first-out queue of frames",
    "lookup_vit": "heavy processing for a few summary tokens, light for the rest of the patches",
    "opera": "beam search with rollback when a multimodal model trusts one token too much",
    "headmask": "switch off heads while training a translation system so none dominates",
    "bert_look_at": "which heads follow syntax and coreference in a masked language model",
    "lie_transformer": "self-attention equivariant to rotations and translations of points",
    "landmark_attention": "one representative token for every block so memory can be looked up "
    "at random",
    "random_access_parity": "transformers cannot address the i-th bit, marker symbols help",
    "stress_bilstm_attention": "tell from interview transcripts whether someone is under pressure",
    "hybrid_distill": "train a small vit from a reconstruction teacher and a contrastive teacher "
    "together",
    "empsoa": "chatbot that keeps its own emotions apart from those of the user",
    "echo_chamber_llm_search": "does asking a chatbot instead of a search engine make people see "
    "only one side",
    "action_feature_attention": "agents that coordinate with humans by comparing features of "
    "moves and observations",
    "lamina_attention_offloading": "run the attention part on cheap memory-heavy machines and "
    "the rest on fast gpus",
    "attention_adversarial_training": "add worst-case noise to the attention scores during "
    "training",
    "attention_sink_metric": "why does the first token soak up so much attention in pretrained "
    "models",
    "dp_attention": "attention computed with privacy guarantees by adding noise to the gram matrix",
    "generative_lm_cyber_defense": "what large language models mean for national security planning",
    "super_attention": "drop the value and other projections to slim the layer",
    "factual_recall_mechanism": "how does gpt know the capital of a country, heads then mlp",
    "apem": "predict clicks and later purchases jointly in several steps",
    "conditional_attention_ctr": "which words of an advertisement work for a target audience",
    "hip_attention": "tree search for the most relevant blocks with logarithmic cost per query",
    "rope_positional_heads": "low frequency dimensions of rotary embeddings carry long distances",
    "aw_moe": "shop search ranking where the shopper's history chooses the experts",
    "vsa_varied_window": "windows in vision whose size and place are predicted from content",
    "attentional_conditioning": "inject sentiment lexicons into the scorer of a recurrent network",
    "anchored_bias_edit": "gpt-2 always answers A in multiple choice, fix it",
    "mtair": "one network removing rain, haze and noise from pictures with mamba",
    "scenebooth": "keep the product photo fixed and paint a background around it",
    "spar": "news recommendation from a very long reading history",
    "thespian": "one agent plays many roles in a text adventure",
    "mix_attention": "some layers local, some global, and they share their caches",
    "lkca": "replace the attention map of a vit by one big convolution kernel",
    "preplan_anchor": "reinforce the tokens where reasoning plans and settles",
    "lserve": "serving engine with streaming heads and page selection unified",
    "moa_personalization": "route each pixel between the original and the personalised layers",
    "minference": "speed up reading a million-token prompt with per-head patterns",
    "homeostatic_nn": "neurons that have needs, adapting when labels change meaning",
    "introspection_finetune": "can a model predict its own behavior better than another model can",
    "mqsa_ted": "next-item suggestion with queries averaged over the last few items",
}
