/* What a program must keep to: nothing outside a tensor and its halo may ever be read or written. */
#include <stdlib.h>

#include "check.h"

#define SIDE_MAX 16384
#define CHANNELS_MAX 4096

static const char *check_tensor(const gs_tensor *tensor, int is_frame) {
    if (tensor->height < 1 || tensor->width < 1 || tensor->height > SIDE_MAX || tensor->width > SIDE_MAX)
        return "a tensor's size is out of range";
    if (tensor->halo < 0 || tensor->halo > 64) return "a tensor's halo is out of range";
    if (is_frame) return tensor->channels == 3 && tensor->dtype == GS_U8 ? NULL : "the frame must be uint8 of 3 channels";
    if (tensor->channels < 16 || tensor->channels % 16 || tensor->channels > CHANNELS_MAX)
        return "a tensor's channels must be a multiple of 16";
    if (tensor->dtype != GS_U8 && tensor->dtype != GS_S16) return "a tensor's type is unknown";
    return tensor->zero < 0 || tensor->zero > 255 ? "a tensor's zero point is out of range" : NULL;
}

static const char *check_window(const gs_op *op, const gs_tensor *in, const gs_tensor *out) {
    const int64_t last_y = (int64_t)(op->out_h - 1) * op->sy - op->pt + (int64_t)(op->kh - 1) * op->dy;
    const int64_t last_x = (int64_t)(op->out_w - 1) * op->sx - op->pl + (int64_t)(op->kw - 1) * op->dx;
    if (op->kh < 1 || op->kw < 1 || op->kh > 15 || op->kw > 15 || op->sy < 1 || op->sx < 1 || op->sy > 16 || op->sx > 16 ||
        op->dy < 1 || op->dx < 1 || op->dy > 64 || op->dx > 64 || op->oy < 1 || op->ox < 1 || op->oy > 16 || op->ox > 16 ||
        op->py < 0 || op->px < 0 || op->out_h < 1 || op->out_w < 1 || op->out_h > SIDE_MAX || op->out_w > SIDE_MAX)
        return "a convolution's window is out of range";
    if (op->pt > in->halo || op->pl > in->halo || op->pt < -SIDE_MAX || op->pl < -SIDE_MAX || last_y >= in->height + in->halo ||
        last_x >= in->width + in->halo || -op->pt >= in->height || -op->pl >= in->width)
        return "a convolution reads beyond its input's halo";
    if ((int64_t)(op->out_h - 1) * op->oy + op->py >= out->height || (int64_t)(op->out_w - 1) * op->ox + op->px >= out->width)
        return "a convolution writes beyond its output";
    return NULL;
}

static const char *check_conv(const gs_op *op, const gs_tensor *in, const gs_tensor *out, int from_frame) {
    const char *problem = check_window(op, in, out);
    if (problem) return problem;
    const int32_t stored = from_frame ? 3 : in->channels;
    if (op->groups < 1 || op->cin < 1 || op->cout < 1 || op->cin > stored || op->cin % op->groups || op->cout % op->groups ||
        op->out_offset < 0 || op->out_offset + op->cout > out->channels)
        return "a convolution's channels do not fit its tensors";
    if (in->dtype != GS_U8 || (out->dtype == GS_S16 && (op->out_offset || op->residual >= 0)))
        return "a convolution's tensors have types that it cannot take";
    if (from_frame && (op->groups != 1 || op->cin != 3 || op->dx != 1)) return "a convolution of the frame must be dense";
    if ((int64_t)op->kh * op->kw * gs_up_to(stored, 4) / 4 > GS_OFFSETS_MAX) return "a convolution's kernel is too large";
    if (op->residual >= 0 && op->out_offset) return "a residual with an offset is not known";
    return NULL;
}

static const char *check_op(const gs_program *program, const gs_op *op, int32_t *writers) {
    const int32_t count = program->tensor_count, has_out = op->kind != GS_HEAD;
    if (op->in < 0 || op->in >= count || (has_out && (op->out < 1 || op->out >= count)) || op->residual < -1 ||
        op->residual >= count || op->in == op->out)
        return "an operator names a tensor that does not exist";
    if ((op->in && !writers[op->in]) || (op->residual >= 0 && (!op->residual || !writers[op->residual])))
        return "an operator reads a tensor that nothing has written";
    const gs_tensor *in = &program->tensors[op->in], *out = has_out ? &program->tensors[op->out] : NULL;
    const gs_tensor *residual = op->residual >= 0 ? &program->tensors[op->residual] : NULL;
    if (residual && (!has_out || op->residual == op->out || residual->dtype != GS_U8 || !gs_same_size(residual, out)))
        return "a residual does not fit its operator";
    switch (op->kind) {
        case GS_CONV:
            if (!op->weight || !op->scale || !op->bias) return "a convolution lacks weights";
            return check_conv(op, in, out, op->in == 0);
        case GS_DEPTHWISE:
            if (!op->weight || !op->scale || !op->bias) return "a convolution lacks weights";
            if (!op->in || !gs_same_size(in, out) || in->dtype != GS_U8 || out->dtype != GS_U8 || op->dy != op->dx ||
                op->dy < 1 || op->dy > in->halo || op->cin < 1 || op->cin > in->channels || op->residual >= 0)
                return "a depthwise convolution does not fit its tensors";
            return NULL;
        case GS_UPSAMPLE:
            if (!op->in || in->dtype != GS_S16 || out->dtype != GS_U8 || out->height != 2 * in->height ||
                out->width != 2 * in->width || in->channels != out->channels || out->zero)
                return "an upsampling does not fit its tensors";
            return NULL;
        case GS_POOL:
            if (!op->scale || !op->bias || in->dtype != GS_U8 || out->dtype != GS_U8 || op->out_h != out->height ||
                op->out_w != out->width || op->out_h * 2 > in->height || op->out_w * 2 > in->width || op->cin < 1 ||
                op->cin > in->channels || op->out_offset < 0 ||
                op->out_offset + (op->in ? in->channels : 3) > out->channels)
                return "a pooling does not fit its tensors";
            return NULL;
        case GS_HEAD:
            if (!op->weight || !op->bias || !op->in || in->dtype != GS_U8 || op->cout < 1 || op->cout > 256 || op->cin < 1 ||
                op->cin > in->channels || in->channels > GS_HEAD_CHANNELS || op->kh != op->kw || (op->kh != 1 && op->kh != 2))
                return "a label head does not fit its input";
            return NULL;
        case GS_ADD:
            if (!op->scale || !op->bias || !residual || !op->in || in->dtype != GS_U8 || out->dtype != GS_U8 ||
                !gs_same_size(in, out))
                return "a sum does not fit its tensors";
            return NULL;
        default:
            return "an operator is unknown";
    }
}

const char *gs_check(const gs_program *program) {
    const char *problem = program->tensor_count < 1 || program->op_count < 1 ? "the program is empty" : NULL;
    for (int32_t i = 0; !problem && i < program->tensor_count; i++) problem = check_tensor(&program->tensors[i], i == 0);
    int32_t *writers = calloc((size_t)program->tensor_count + 1, sizeof *writers);
    if (!writers) return GS_NO_MEMORY;
    for (int32_t i = 0; !problem && i < program->op_count; i++) {
        const gs_op *op = &program->ops[i];
        problem = check_op(program, op, writers);
        if (!problem && (op->kind == GS_HEAD) != (i == program->op_count - 1)) problem = "the label head must come last, once";
        if (!problem && op->kind != GS_HEAD) writers[op->out]++;
    }
    free(writers);
    return problem;
}
