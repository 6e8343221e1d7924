/* Tells how many images a network gets right: main IMAGES LABELS [TRACE]
 *
 * IMAGES holds raw bytes, (channel, height, width) of one image after the other; LABELS whole numbers as text. What
 * every step computes is written to TRACE, as golden.trace has it on little-endian machines.
 */
#include "network.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static FILE *trace;
static uint32_t crc = 0xffffffff; /* CRC-32 of all logits, eight bytes each, the lowest first */

static void keep(const void *data, size_t bytes)
{
    if (fwrite(data, 1, bytes, trace) != bytes) {
        perror("TRACE");
        exit(2);
    }
}

static void digest(int64_t logit)
{
    for (int k = 0; k < 64; k++) {
        uint32_t bit = (uint32_t)((uint64_t)logit >> k & 1);
        crc = crc >> 1 ^ ((crc ^ bit) & 1 ? 0xedb88320 : 0);
    }
}

static void tell(uint64_t right, uint64_t images)
{
    char text[32];
    double accuracy = (double)right / (double)images;
    for (int digits = 1; digits <= 17; digits++) { /* as few as tell it exactly */
        snprintf(text, sizeof text, "%.*g", digits, accuracy);
        if (strtod(text, NULL) == accuracy)
            break;
    }
    printf("accuracy %s (%" PRIu64 " of %" PRIu64 ")\n", text, right, images);
    printf("logits crc32 %08" PRIx32 "\n", ~crc);
#ifdef NETWORK_SHARED
    struct network_count all = {0, 0, 0, 0, 0};
    for (int k = 0; k <= NETWORK_LAYERS; k++) {
        struct network_count n = network_counts[k];
        printf("%s: zero %" PRIu64 " v1 %" PRIu64 " v2 %" PRIu64 " exact %" PRIu64 "\n", network_layers[k], n.zero, n.v1,
               n.v2, n.exact);
        all.zero += n.zero + n.v1 + n.v2 + n.exact; /* products */
        all.executed += n.executed;
    }
    printf("multiplications executed: %" PRIu64 " of %" PRIu64 "\n", all.executed, all.zero);
#endif
}

int main(int count, char **names)
{
    static uint8_t image[NETWORK_PIXELS];
    int64_t logits[NETWORK_CLASSES];
    uint64_t images = 0, right = 0;
    FILE *pixels = count > 2 ? fopen(names[1], "rb") : NULL, *labels = count > 2 ? fopen(names[2], "r") : NULL;
    trace = count > 3 ? fopen(names[3], "wb") : NULL;
    if (!pixels || !labels || (count > 3 && !trace)) {
        fprintf(stderr, "usage: %s IMAGES LABELS [TRACE], files that can be opened\n", names[0]);
        return 2;
    }
    for (int label; fscanf(labels, "%d", &label) == 1; images++) {
        if (fread(image, 1, sizeof image, pixels) != sizeof image) {
            fprintf(stderr, "%s has fewer images than %s labels\n", names[1], names[2]);
            return 2;
        }
        network_run(image, logits, trace ? keep : NULL);
        int best = 0;
        for (int k = 0; k < NETWORK_CLASSES; k++) {
            digest(logits[k]);
            if (logits[k] > logits[best])
                best = k;
        }
        right += best == label;
    }
    if (!images || fgetc(pixels) != EOF || (trace && fclose(trace))) {
        fprintf(stderr, "%s must hold an image for each label of %s, and TRACE be writable\n", names[1], names[2]);
        return 2;
    }
    tell(right, images);
    return 0;
}
