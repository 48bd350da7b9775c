"""Questions for rows drawn with random.Random(20261201), by one who saw the catalogue alone."""

FIFTH = {
    "conditional_attention_ctr": (
        "highlight persuasive words in advertisement copy depending on target gender and genre"
    ),
    "entropy_scale_variable_size": (
        "rescale softmax temperature when diffusion model runs at a resolution it wasn't trained on"
    ),
    "convbert": (
        "swap some encoder heads for per-position generated kernels computed from local window"
    ),
    "efficient_vdit_tile": (
        "clip generator where frames see only themselves plus a few reference frames, linear"
    ),
    "diffusion_replication_survey": (
        "overview of image generators memorising and copying their training pictures"
    ),
    "dare": (
        "separate lookup tables for searching user behaviours and for representing them, "
        "avoiding gradient conflict"
    ),
    "attentional_conditioning": (
        "inject sentiment lexicon features into RNN scorer by gating, concatenation or affine "
        "transform"
    ),
    "bam_upcycling": (
        "merge specialised dense models into one sparse model, reusing their attention "
        "weights besides FFNs"
    ),
    "ee_mllm": (
        "skip image-to-image token interactions in a vision language model, only text tokens "
        "as queries"
    ),
    "concept_centric_transformer": (
        "image classifier with slot memory bottleneck whose weights give human-checkable "
        "explanations"
    ),
    "hip_attention": (
        "training-free tree search for relevant key blocks scoring only representatives, T "
        "log T decoding"
    ),
    "attend_and_excite": (
        "generated picture ignores one of the objects in my prompt, optimise latent during "
        "denoising"
    ),
    "mhac_tourism": (
        "forecast number of overseas visitors arriving per day from politics, disease and "
        "season variables"
    ),
    "deception_bench": (
        "test whether chatbots lie to users when given rewards or put under pressure"
    ),
    "seer_attention": (
        "small learned gate on pooled queries and keys predicts which blocks to compute"
    ),
    "spar": (
        "news recommender encoding very long reading history by session into several interest "
        "vectors"
    ),
    "big_bench": "huge collaborative suite of 204 tasks in JSON for evaluating LLMs",
    "group_think": (
        "several parallel thought threads of one LLM see each other's partial output every step"
    ),
    "paged_attention": (
        "KV cache in fixed-size blocks with lookup tables, like operating system paging"
    ),
    "s2_attention": (
        "each head keeps different strided blocks of the past, jointly covering everything"
    ),
    "pinco": (
        "generate background around a given product without distorting its outline, DiT add- on"
    ),
    "shared_attention_weights": (
        "reuse softmax probabilities from one layer in later layers so they need no keys"
    ),
    "hybrid_distill": (
        "distil ViT from two teachers, one masked image modelling and one CLIP or supervised"
    ),
    "ring_attention": (
        "split long sequence over GPUs and pass key value blocks around while overlapping "
        "communication"
    ),
    "pervasive_attention": (
        "translation without encoder and decoder, masked convnet on grid of source target "
        "word pairs"
    ),
    "turbovit_mask_unit": (
        "low-latency hierarchical ViT found by automated search, local block attention and "
        "query pooling"
    ),
    "factual_recall_mechanism": (
        "heads copy the subject, MLP turns country into capital, last layer suppresses confidence"
    ),
    "lightning_attention": (
        "TNL language model, linear attention without cumsum, training throughput independent "
        "of length"
    ),
    "minilm_v2": (
        "compress language model by matching query-query, key-key and value-value "
        "similarities, any head count"
    ),
    "scan_and_snap": (
        "theory of SGD on a single-layer model: attention drops frequent tokens, then freezes"
    ),
    "random_access_parity": (
        "why models fail to index by position in longer bit strings, marker tokens help"
    ),
    "reading_goal_decoding": (
        "tell from gaze whether someone hunts for specific information or goes through text "
        "ordinarily"
    ),
    "cartesian_moe": (
        "two successive routed feed-forward sublayers so pairs of sub-experts combine "
        "multiplicatively"
    ),
    "mutual_theory_of_mind": (
        "framework for how people and AI assistants form impressions of each other while conversing"
    ),
    "joint_attention_estimation": (
        "predict the spot a group is looking at together, from heads, gaze and actions"
    ),
    "persistent_transient_duality": (
        "forecast human motion handling objects with a switch turning short-lived egocentric "
        "processes on"
    ),
    "massive_activations": "few gigantic hidden state values at first token act as bias in LLMs",
    "apem": (
        "multi-task purchase funnel predictor with induced set transformer over feature "
        "groups and task indicators"
    ),
    "ulsam": (
        "very cheap spatial map per channel group for MobileNet, fewer weights than linear layer"
    ),
    "var_visual_sink": (
        "irrelevant image patches hog attention in LLaVA, redistribute it in image-centric heads"
    ),
    "flex_attention": (
        "write custom score function and mask in PyTorch, compiler emits a fused block-sparse "
        "kernel"
    ),
    "hcrs_workshop": (
        "meeting programme on recommendation built around user needs, fairness, privacy and trust"
    ),
    "dependency_vit": (
        "image patches organise into an unsupervised parse hierarchy, child nodes send to parents"
    ),
    "ltri_llm": "cut endless stream into semantic spans seen in score maps, recall by head voting",
    "att_swin_unet": (
        "dermoscopy melanoma mask with windowed transformer, class token cross attention in "
        "skip connections"
    ),
    "linguistic_coordination_movies": (
        "do film characters mimic each other's function words in scripted dialogue"
    ),
    "see_net": "event camera helps relight a photo to any requested mean luminance",
    "idol_joint_video_depth": (
        "generate human dance clips and depth maps together with one shared U-Net"
    ),
    "deconstructed_attention": (
        "what makes a transformer LM work: remove token mixing or input dependence, one each"
    ),
    "hallucination_gat": (
        "connect similar LLM generations in embedding space and classify nodes as faithful or not"
    ),
    "monotonic_location_attention": (
        "seq2seq alignment by Gaussian centre stepping along source, copies longer strings "
        "than trained"
    ),
    "chunked_attention": (
        "exact softmax in constant memory by processing key chunks with running max and "
        "checkpointing"
    ),
    "coulgat": (
        "node interactions with inverse distance raised to learned powers, screened "
        "electrostatic potential"
    ),
    "multi_perspective_reference": (
        "speaker and listener view a scene from different viewpoints, dataset of referring "
        "expressions"
    ),
    "lamina_attention_offloading": (
        "put decode-time KV cache work on cheap memory-rich GPUs apart from dense layers"
    ),
    "self_familiarity": (
        "model checks if it knows the concepts in a question beforehand and withholds answering"
    ),
    "stress_bilstm_attention": (
        "detect stressed speakers in interview transcripts, pretrain on hashtag-labelled tweets"
    ),
    "sixteen_heads": (
        "prune most heads after training with gradient importance score and little loss in BLEU"
    ),
    "lightning_attention_2": (
        "tiled backward pass for decayed linear attention, intra-block product plus d by d state"
    ),
    "deep_thinking_icl": (
        "process few-shot examples repeatedly, updating their cached keys and values with momentum"
    ),
}
