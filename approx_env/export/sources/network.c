/* Runs the INT8 network whose numbers are in network.h. ISO C99, integers only; a network that standardises its images
 * takes sqrt besides.
 *
 * Tensors of codes lie as (height, width, channel); a row of weights, one for each output channel of a group, goes with
 * one input code. With NETWORK_SHARED, products are computed as TAP allows: a code 0 is skipped, weights that meet v1 or v2 are
 * added up first and multiplied once, and only exact codes are multiplied one by one. The bits are the same. What is
 * executed is counted.
 */
#define NETWORK_NUMBERS
#include "network.h"

#ifdef NETWORK_STANDARDISED
#include <math.h>
#endif
#include <string.h>

#define HALF (1 << 15) /* of a step of 2^16, by which sums are divided */

static uint8_t codes[NETWORK_CODES];
static int64_t values[NETWORK_VALUES];
static int32_t sums[NETWORK_CHANNELS];

#ifdef NETWORK_SHARED
struct network_count network_counts[NETWORK_LAYERS + 1];
static int32_t with_v1[NETWORK_CHANNELS], with_v2[NETWORK_CHANNELS]; /* sums of the weights that meet them */

static void add(int32_t *total, const int8_t *weight, int channels)
{
    for (int o = 0; o < channels; o++)
        total[o] += weight[o];
}
#endif

static void multiply(int32_t *total, const int8_t *weight, int channels, int32_t value)
{
    for (int o = 0; o < channels; o++)
        total[o] += weight[o] * value;
}

/* Adds the products of one input code with a row of weights, to the sums from `first` on. */
static void accumulate(const struct step *s, int32_t code, const int8_t *weight, int first)
{
    int channels = s->out.channels / s->groups;
#ifdef NETWORK_SHARED
    struct network_count *count = &network_counts[s->layer];
    if (s->layer < NETWORK_LAYERS) {
        if (code == 0) {
            count->zero += (uint64_t)channels;
            return;
        }
        if (code == s->v1 || code == s->v2) {
            *(code == s->v1 ? &count->v1 : &count->v2) += (uint64_t)channels;
            add((code == s->v1 ? with_v1 : with_v2) + first, weight, channels);
            return;
        }
    }
    count->exact += (uint64_t)channels;
    count->executed += (uint64_t)channels;
#endif
    multiply(sums + first, weight, channels, code - s->zero);
}

/* The sums of products at one place, with the bias. */
static void window(const struct step *s, const uint8_t *in, int top, int left)
{
    int channels = s->out.channels, row = channels / s->groups, fed = s->in.channels / s->groups;
    memcpy(sums, s->bias, (size_t)channels * sizeof *sums);
#ifdef NETWORK_SHARED
    memset(with_v1, 0, (size_t)channels * sizeof *with_v1);
    memset(with_v2, 0, (size_t)channels * sizeof *with_v2);
#endif
    for (int ky = 0; ky < s->kernel_height; ky++)
        for (int kx = 0; kx < s->kernel_width; kx++) {
            int y = top + ky, x = left + kx;
            if (y < 0 || y >= s->in.height || x < 0 || x >= s->in.width)
                continue; /* padding is 0.0 */
            const uint8_t *code = in + (size_t)(y * s->in.width + x) * (size_t)s->in.channels;
            const int8_t *weight =
                s->weight + (size_t)(ky * s->kernel_width + kx) * (size_t)s->in.channels * (size_t)row;
            for (int i = 0; i < s->in.channels; i++, weight += row)
                accumulate(s, code[i], weight, i / fed * row);
        }
#ifdef NETWORK_SHARED
    if (s->layer < NETWORK_LAYERS) {
        for (int o = 0; o < channels; o++)
            sums[o] += s->v1 * with_v1[o] + s->v2 * with_v2[o];
        network_counts[s->layer].executed += 2 * (uint64_t)channels;
    }
#endif
}

/* The code of an integer in units of 1 / 2^16. */
static uint8_t requantised(int64_t value)
{
    value = value < -HALF ? 0 : (value + HALF) >> 16;
    return (uint8_t)(value > 255 ? 255 : value);
}

static void weighted(const struct step *s)
{
    int channels = s->out.channels;
    for (int y = 0; y < s->out.height; y++)
        for (int x = 0; x < s->out.width; x++) {
            size_t place = s->to + (size_t)(y * s->out.width + x) * (size_t)channels;
            window(s, codes + s->from, y * s->stride - s->padding, x * s->stride - s->padding);
            for (int o = 0; o < channels; o++) {
                int64_t value = (int64_t)sums[o] * s->multiplier[o];
                if (s->logits)
                    values[place + (size_t)o] = s->relu && value < 0 ? 0 : value;
                else
                    codes[place + (size_t)o] = requantised(value);
            }
        }
}

static void max_pool(const struct step *s)
{
    int channels = s->in.channels;
    uint8_t *out = codes + s->to;
    for (int y = 0; y < s->out.height; y++)
        for (int x = 0; x < s->out.width; x++, out += channels) {
            memset(out, 0, (size_t)channels);
            for (int i = y * s->stride; i < y * s->stride + s->kernel_height && i < s->in.height; i++)
                for (int j = x * s->stride; j < x * s->stride + s->kernel_width && j < s->in.width; j++) {
                    const uint8_t *in = codes + s->from + (size_t)(i * s->in.width + j) * (size_t)channels;
                    for (int c = 0; c < channels; c++)
                        if (in[c] > out[c])
                            out[c] = in[c];
                }
        }
}

/* The mean of a window of codes, halves rounded up; the sum of logits. */
static void mean(const struct step *s, int top, int left, size_t to)
{
    int places = s->kernel_height * s->kernel_width, channels = s->in.channels;
    for (int c = 0; c < channels; c++) {
        int64_t total = 0;
        for (int y = top; y < top + s->kernel_height; y++)
            for (int x = left; x < left + s->kernel_width; x++) {
                size_t place = s->from + (size_t)(y * s->in.width + x) * (size_t)channels + (size_t)c;
                total += s->logits ? values[place] : codes[place];
            }
        if (s->logits)
            values[to + (size_t)c] = total;
        else
            codes[to + (size_t)c] = (uint8_t)((total + places / 2) / places);
    }
}

/* A window is the whole input where the pool is global. */
static void average(const struct step *s)
{
    size_t to = s->to;
    for (int y = 0; y < s->out.height; y++)
        for (int x = 0; x < s->out.width; x++, to += (size_t)s->out.channels)
            mean(s, y * s->stride, x * s->stride, to);
}

/* (height, width, channel) to (channel, height, width). */
static void flatten(const struct step *s)
{
    int places = s->in.height * s->in.width, channels = s->in.channels;
    for (int c = 0; c < channels; c++)
        for (int p = 0; p < places; p++) {
            size_t from = s->from + (size_t)p * (size_t)channels + (size_t)c;
            size_t to = s->to + (size_t)c * (size_t)places + (size_t)p;
            if (s->logits)
                values[to] = values[from];
            else
                codes[to] = codes[from];
        }
}

/* Puts a tensor into a concatenation, from `first` channel on. */
static void copy(const struct step *s)
{
    int places = s->in.height * s->in.width;
    for (int p = 0; p < places; p++)
        memcpy(codes + s->to + (size_t)p * (size_t)s->out.channels + (size_t)s->first,
               codes + s->from + (size_t)p * (size_t)s->in.channels, (size_t)s->in.channels);
}

static void addition(const struct step *s)
{
    for (size_t k = 0; k < s->size; k++) {
        int sum = codes[s->from + k] + codes[s->other + k];
        codes[s->to + k] = (uint8_t)(sum > 255 ? 255 : sum);
    }
}

/* Of codes of two scales, or of values, which have their multiplier in them. */
static void scaled_addition(const struct step *s)
{
    for (size_t k = 0; k < s->size; k++) {
        int64_t a = s->wide ? values[s->from + k] : codes[s->from + k];
        int64_t b = s->other_wide ? values[s->other + k] : codes[s->other + k];
        codes[s->to + k] = requantised(a * s->multiplier[0] + b * s->multiplier[1]);
    }
}

static void look_up(const struct step *s)
{
    for (size_t k = 0; k < s->size; k++)
        codes[s->to + k] = s->table[codes[s->from + k]];
}

#ifdef NETWORK_STANDARDISED
/* Brings an image to mean 128 and standard deviation 40. The product is stored, so that no compiler fuses it with the
 * addition and rounds otherwise. */
static void standardise(uint8_t *pixels)
{
    int64_t total = 0, squares = 0;
    for (int k = 0; k < NETWORK_PIXELS; k++) {
        total += pixels[k];
        squares += pixels[k] * pixels[k];
    }
    double deviation = sqrt((double)(NETWORK_PIXELS * squares - total * total));
    if (deviation < NETWORK_LEAST_DEVIATION)
        deviation = NETWORK_LEAST_DEVIATION;
    for (int k = 0; k < NETWORK_PIXELS; k++) {
        volatile double product = 40 * ((double)(NETWORK_PIXELS * (int64_t)pixels[k] - total) / deviation);
        double code = rint(128 + product);
        pixels[k] = (uint8_t)(code < 0 ? 0 : code > 255 ? 255 : code);
    }
}
#endif

static void read_image(const uint8_t *image)
{
    int places = NETWORK_HEIGHT * NETWORK_WIDTH;
    for (int c = 0; c < NETWORK_IMAGE_CHANNELS; c++)
        for (int p = 0; p < places; p++)
            codes[NETWORK_INPUT + p * NETWORK_IMAGE_CHANNELS + c] = image[c * places + p];
#ifdef NETWORK_STANDARDISED
    standardise(codes + NETWORK_INPUT);
#endif
}

void network_run(const uint8_t *image, int64_t *logits, network_observer *seen)
{
    read_image(image);
    for (int k = 0; k < NETWORK_STEPS; k++) {
        const struct step *s = &steps[k];
        switch (s->kind) {
        case WEIGHTED: weighted(s); break;
        case MAX_POOL: max_pool(s); break;
        case AVERAGE: average(s); break;
        case FLATTEN: flatten(s); break;
        case COPY: copy(s); break;
        case ADDITION: addition(s); break;
        case SCALED_ADDITION: scaled_addition(s); break;
        case TABLE: look_up(s); break;
        }
        if (seen && s->last)
            seen(s->logits ? (const void *)(values + s->to) : (const void *)(codes + s->to),
                 s->size * (s->logits ? sizeof *values : 1));
    }
    memcpy(logits, values + NETWORK_LOGITS, NETWORK_CLASSES * sizeof *logits);
}
