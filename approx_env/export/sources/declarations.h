/* Numbers of one layer whose codes TAP approximates; the last entry is of all other multiplications. */
struct network_count {
    uint64_t zero, v1, v2, exact; /* products by the code that they read; none with padding */
    uint64_t executed;            /* multiplications that were computed for them */
};

/* Called after each step with what it computed: codes, or logits of eight bytes, as (height, width, channel). */
typedef void network_observer(const void *data, size_t bytes);

/* Takes an image (channel, height, width) to its logits. `seen` may be NULL. Not for several threads at once. */
void network_run(const uint8_t *image, int64_t *logits, network_observer *seen);

#ifdef NETWORK_SHARED
extern struct network_count network_counts[NETWORK_LAYERS + 1];
extern const char *const network_layers[NETWORK_LAYERS + 1];
#endif

#ifdef NETWORK_NUMBERS
struct shape {
    int channels, height, width;
};

/* What one step computes. `from`, `other` and `to` are places in the buffer of codes, or of values: logits, and what is
 * added before it becomes codes. */
struct step {
    enum { WEIGHTED, MAX_POOL, AVERAGE, FLATTEN, COPY, ADDITION, SCALED_ADDITION, TABLE } kind;
    size_t from, other, to, size; /* size of the output */
    struct shape in, out;
    int last;   /* of the steps that make one tensor */
    int logits; /* whether the output is values */
    int wide, other_wide; /* whether what is added is values */
    int kernel_height, kernel_width, stride, padding, first;
    int groups;     /* of channels: an output reads the inputs of its own group */
    int zero, relu; /* the input's code of 0.0 */
    int layer;      /* whose codes are multiplied; NETWORK_LAYERS: none's */
    uint8_t v1, v2; /* of that layer */
    const int8_t *weight;
    const int32_t *bias, *multiplier;
    const uint8_t *table;
};
