/* One data holder's DP-SGD steps in closed form, for one width of vector registers. Included by cohort_kernel.c, once
 * for each instruction set, with NAME (of the function made), TARGET (its attribute) and LANES (floats in a register).
 *
 * Abadi et al. 2016, arXiv:1607.00133, algorithm 1. The gradient of one row is, for each linear layer, the outer product
 * of the gradient for its outputs and its inputs, and its square norm |outputs|^2 (|inputs|^2 + 1): Goodfellow 2015,
 * Efficient Per-Example Gradient Computations, arXiv:1510.01799. So rows are clipped without their gradients ever being
 * written down. A data subject's rows are summed first, written down, and clipped as one.
 *
 * Each row's numbers are float32 and depend on no other row. They are summed in float64, in float32 over as many rows
 * first as the step's number of units leaves room for, and over a subject's rows before its norm is taken of that very
 * sum.
 * Widths are padded to COLUMNS with zeros, so that no loop over columns has a remainder.
 */

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define LOCAL(name) JOIN(name, LANES)
#define VECTOR LOCAL(vector_)
#define BLOCK LOCAL(block_)
#define STRIP LOCAL(strip_)
#define MULTIPLY LOCAL(multiply_)
#define DOT LOCAL(dot_)
#define FORWARD LOCAL(forward_)
#define BACKWARD LOCAL(backward_)
#define CLIP_ROWS LOCAL(clip_rows_)
#define ADD_GRADIENT LOCAL(add_gradient_)

typedef float VECTOR __attribute__((vector_size(LANES * sizeof(float))));

/* c[r][..] = start[..] + sum over k of a[r * a_row + k * a_inner] * b[k][..], for r < rows and as many columns as `vectors`
 * registers hold. The sums stay in registers: `rows` and `vectors` are constants wherever this is inlined. */
INLINE void BLOCK(const int rows, const int vectors, long inner, const float *a, long a_row, long a_inner, const float *b,
                  long b_row, const float *start, float *c, long c_row) {
    VECTOR sum[8][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[r][v] = start ? *(const VECTOR *)(start + v * LANES) : (VECTOR){0};
    for (long k = 0; k < inner; k++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vectors; v++)
                sum[r][v] += a[r * a_row + k * a_inner] * *(const VECTOR *)(b + k * b_row + v * LANES);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            *(VECTOR *)(c + r * c_row + v * LANES) = sum[r][v];
}

/* As many of c's columns, of all its rows and up to three more, whatever stands there: a row's numbers are its own.
 * Eight rows at once where there are 32 registers, else four; a row alone would take as long as four. */
INLINE void STRIP(const int vectors, long rows, long inner, const float *a, long a_row, long a_inner, const float *b,
                  long b_row, const float *start, float *c, long c_row) {
    long i = 0;
#if LANES == 16
    for (; i + 8 <= rows; i += 8)
        BLOCK(8, vectors, inner, a + i * a_row, a_row, a_inner, b, b_row, start, c + i * c_row, c_row);
#endif
    for (; i < rows; i += 4)
        BLOCK(4, vectors, inner, a + i * a_row, a_row, a_inner, b, b_row, start, c + i * c_row, c_row);
}

/* c = start (or 0) + a b, where c has `rows` rows and `columns` (a multiple of COLUMNS) columns. */
INLINE void MULTIPLY(long rows, long columns, long inner, const float *a, long a_row, long a_inner, const float *b,
                     long b_row, const float *start, float *c, long c_row) {
    long j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES)
        STRIP(2, rows, inner, a, a_row, a_inner, b + j, b_row, start ? start + j : NULL, c + j, c_row);
    for (; j < columns; j += LANES)
        STRIP(1, rows, inner, a, a_row, a_inner, b + j, b_row, start ? start + j : NULL, c + j, c_row);
}

INLINE float DOT(const float *a, const float *b, long width) {
    VECTOR sum = {0};
    for (long i = 0; i < width; i += LANES)
        sum += *(const VECTOR *)(a + i) * *(const VECTOR *)(b + i);
    UNROLL for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            sum[i] += sum[i + half];
    return sum[0];
}

/* Inputs of every layer, and the gradient of each row's loss for its logit, of rows[0..count]. */
INLINE void FORWARD(const struct steps *of, struct layer *layers, const int64_t *rows, long count) {
    const long features = layers[0].inputs;
    for (long i = 0; i < count; i++)
        memcpy(layers[0].in + i * layers[0].in_pad, of->features + rows[i] * features, features * sizeof(float));
    for (long l = 0; l + 1 < of->layers; l++) {
        float *out = layers[l + 1].in;
        MULTIPLY(count, layers[l].out_pad, layers[l].inputs, layers[l].in, layers[l].in_pad, 1, layers[l].turned,
                 layers[l].out_pad, layers[l].bias, out, layers[l].out_pad);
        for (long i = 0; i < count * layers[l].out_pad; i++)
            out[i] = out[i] < 0 ? 0 : out[i]; /* a NaN stays one, and its row is left out */
    }
    const struct layer *last = layers + of->layers - 1;
    for (long i = 0; i < count; i++) {
        float logit = DOT(last->in + i * last->in_pad, last->weight, last->in_pad) + last->bias[0];
        last->out_gradient[i * last->out_pad] = 1.0f / (1.0f + expf(-logit)) - of->labels[rows[i]];
    }
}

/* The gradients of each row's loss for the outputs of every layer but the last. */
INLINE void BACKWARD(const struct steps *of, struct layer *layers, long count) {
    for (long l = of->layers - 1; l > 0; l--) {
        const float *in = layers[l].in;
        float *gradient = layers[l - 1].out_gradient;
        MULTIPLY(count, layers[l].in_pad, layers[l].outputs, layers[l].out_gradient, layers[l].out_pad, 1,
                 layers[l].weight, layers[l].in_pad, NULL, gradient, layers[l].in_pad);
        for (long i = 0; i < count * layers[l].in_pad; i++)
            gradient[i] = in[i] > 0 ? gradient[i] : 0;
    }
}

/* Scale each row's gradient down to `bound`. A gradient for outputs can be so small that its square is lost where inputs
 * are so large that the product of the two is not, so UNDERFLOW is added to that square. A row whose square norm is not
 * finite contributes nothing at all: scaled down it would still not be finite, and one row would decide whether the
 * whole update is. */
INLINE void CLIP_ROWS(const struct steps *of, struct layer *layers, long count, double bound) {
    for (long i = 0; i < count; i++) {
        float square = 0;
        for (long l = 0; l < of->layers; l++) {
            const float *in = layers[l].in + i * layers[l].in_pad;
            const float *gradient = layers[l].out_gradient + i * layers[l].out_pad;
            const float of_outputs = DOT(gradient, gradient, layers[l].out_pad) + UNDERFLOW;
            square += of_outputs * (DOT(in, in, layers[l].in_pad) + 1.0f);
        }
        const int is_usable = isfinite(square);
        if (is_usable && square <= bound * bound)
            continue;
        const float factor = is_usable ? (float)(bound / sqrt(square)) : 0.0f;
        for (long l = 0; l < of->layers; l++) {
            float *in = layers[l].in + i * layers[l].in_pad;
            float *gradient = layers[l].out_gradient + i * layers[l].out_pad;
            for (long j = 0; j < layers[l].out_pad; j++)
                gradient[j] = is_usable ? gradient[j] * factor : 0;
            for (long j = 0; !is_usable && j < layers[l].in_pad; j++)
                in[j] = 0;
        }
    }
}

/* Add the sum of the rows' gradients to sum[0..parameters], in the module's order. */
INLINE void ADD_GRADIENT(const struct steps *of, struct layer *layers, long count, int in_float32, float *scratch,
                         double *sum) {
    for (long l = 0; l < of->layers; l++) {
        const struct layer *at = layers + l;
        const float *gradient = at->out_gradient;
        double *bias = sum + at->outputs * at->inputs;
        if (in_float32)
            MULTIPLY(at->outputs, at->in_pad, count, gradient, 1, at->out_pad, at->in, at->in_pad, NULL, scratch,
                     at->in_pad);
        for (long o = 0; o < at->outputs; o++, sum += at->inputs) {
            for (long i = 0; in_float32 && i < at->inputs; i++)
                sum[i] += scratch[o * at->in_pad + i];
            for (long r = 0; !in_float32 && r < count; r++)
                for (long i = 0; i < at->inputs; i++) /* a product of two float32 is exact in float64 */
                    sum[i] += (double)gradient[r * at->out_pad + o] * at->in[r * at->in_pad + i];
        }
        for (long r = 0; r < count; r++)
            for (long o = 0; o < at->outputs; o++)
                bias[o] += gradient[r * at->out_pad + o];
        sum += at->outputs;
    }
}

TARGET static void NAME(const struct steps *of, struct layer *layers, float *scratch, double *unit) {
    int64_t first = 0;
    for (int64_t step = 0; step < of->steps; step++) {
        const int64_t end = of->ends[step];
        double *sum = of->noise + step * of->noise_stride;
        const long chain = of->units || end == first ? PIECE : CHAIN / (end - first) / ROWS * ROWS;
        const int in_float32 = chain > 0;
        const long piece = in_float32 && chain < PIECE ? chain : PIECE;
        load_weights(of, layers);
        while (first < end) {
            /* Without subjects a piece is any rows; with them, the rows of one. */
            int64_t stop = first + 1;
            if (!of->units)
                stop = end;
            else
                while (stop < end && of->units[stop] == of->units[first])
                    stop++;
            double *into = of->units ? memset(unit, 0, of->parameters * sizeof(double)) : sum;
            for (; first < stop; first += piece) {
                const long count = stop - first < piece ? stop - first : piece;
                FORWARD(of, layers, of->rows + first, count);
                BACKWARD(of, layers, count);
                CLIP_ROWS(of, layers, count, of->units ? INFINITY : of->bound);
                ADD_GRADIENT(of, layers, count, in_float32, scratch, into);
            }
            first = stop;
            if (of->units)
                add_clipped(unit, of->bound, sum, of->parameters);
        }
        take_step(of, sum);
    }
}

#undef VECTOR
#undef BLOCK
#undef STRIP
#undef MULTIPLY
#undef DOT
#undef FORWARD
#undef BACKWARD
#undef CLIP_ROWS
#undef ADD_GRADIENT
#undef LOCAL
#undef JOIN
#undef JOIN_
#undef NAME
#undef TARGET
#undef LANES
