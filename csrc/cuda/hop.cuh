// How the words of a message come from one block of a pipeline to another: two ways with one interface.
//
// Each block has, per kind of message and group of rows, one buffer to receive it in, at the same place in every block.
// It is safe to overwrite: whoever sends message i + 1 knows, around the loop of the samples, of a value that depends
// on every word of message i.
//
//   open(): before the first message.
//   send(stage, kind, group, i, words): message i of a launch; behind a barrier after the last write of `words`.
//   receive(kind, group, i, words): returns behind a barrier, with what has come; false if nothing came in time.
//   close(): nobody sends any more.
//
// `words` is the block's buffer for that kind and group, from which it sends too.
#pragma once

#include "cuda/wait.cuh"

namespace fastwave::cuda {

enum Message { residual_message, skip_message, sample_message, message_kinds };

// What a hop must know of its block and of the launch.
struct Place {
    int stage, groups;
    int words[message_kinds];  // of a message, a multiple of 4
    uint64_t* barriers;        // (kind, group)
    uint4* boxes;              // of the pipeline
    uint32_t first_tag;        // of this launch's messages, at least 1
};

// Through the L2 cache, on every chip, for blocks that all run at once. A packet is three words and a tag that tells
// this message from all that lay here before; they are stored and read as one, so there is no flag apart from the data,
// no fence and nothing to clear.
class Mailbox {
public:
    static constexpr int sm = 0;  // from this architecture on

    // Packets of all boxes of a pipeline, zeros before the first launch.
    __host__ __device__ static constexpr int64_t packets(int64_t stages, int64_t groups, int64_t widest) {
        return stages * message_kinds * groups * ((widest + 2) / 3);
    }

    __device__ explicit Mailbox(const Place& place)
        : at_(place), packets_((max(place.words[residual_message], place.words[skip_message]) + 2) / 3) {}

    __device__ void open() {}
    __device__ void close() {}

    __device__ void send(int stage, Message kind, int group, int i, const uint32_t* words) {
        uint4* to = box(stage, kind, group);
        const int count = at_.words[kind];
        for (int packet = threadIdx.x; 3 * packet < count; packet += blockDim.x) {
            const uint32_t* at = words + 3 * packet;
            const bool second = 3 * packet + 1 < count, third = 3 * packet + 2 < count;
            store_relaxed(to + packet, {at[0], second ? at[1] : 0, third ? at[2] : 0, at_.first_tag + i});
        }
    }

    __device__ bool receive(Message kind, int group, int i, uint32_t* words) {
        const uint4* from = box(at_.stage, kind, group);
        const int count = at_.words[kind];
        bool arrived = true;
        for (int packet = threadIdx.x; 3 * packet < count && arrived; packet += blockDim.x) {
            uint4 got;
            arrived = wait_for([&] {
                got = load_relaxed(from + packet);
                return got.w == at_.first_tag + i;
            });
            uint32_t* at = words + 3 * packet;
            at[0] = got.x;
            if (3 * packet + 1 < count) at[1] = got.y;
            if (3 * packet + 2 < count) at[2] = got.z;
        }
        return __syncthreads_and(arrived);
    }

private:
    __device__ uint4* box(int stage, Message kind, int group) const {
        return at_.boxes + (static_cast<int64_t>(stage * message_kinds + kind) * at_.groups + group) * packets_;
    }

    const Place& at_;
    const int packets_;
};

// Straight into the receiver's shared memory, where the pipeline is a thread-block cluster (sm_90 on). A barrier per
// buffer counts the bytes that come; its receiver arrives ahead, for the message after the one it has just taken.
class ClusterHop {
public:
    static constexpr int sm = 90;

    __device__ explicit ClusterHop(const Place& place) : at_(place) {}

    __device__ void open() {
        if (threadIdx.x == 0)
            for (int kind = 0; kind < message_kinds; ++kind)
                for (int group = 0; group < at_.groups; ++group) {
                    mbarrier_init(barrier(kind, group));
                    mbarrier_expect(barrier(kind, group), 4 * at_.words[kind]);
                }
        cluster_sync();
    }
    __device__ void close() { cluster_sync(); }  // a block's shared memory stays while somebody may write to it

    __device__ void send(int stage, Message kind, int group, int, const uint32_t* words) {
        const auto* from = reinterpret_cast<const uint4*>(words);
        for (int i = threadIdx.x; 4 * i < at_.words[kind]; i += blockDim.x)
            st_async(from + i, from[i], barrier(kind, group), stage);
    }

    __device__ bool receive(Message kind, int group, int i, uint32_t*) {
        const uint64_t* awaited = barrier(kind, group);
        const bool arrived = __syncthreads_and(wait_for([&] { return mbarrier_try_wait(awaited, i & 1); }));
        if (threadIdx.x == 0 && arrived) mbarrier_expect(barrier(kind, group), 4 * at_.words[kind]);
        return arrived;
    }

private:
    __device__ uint64_t* barrier(int kind, int group) const { return at_.barriers + kind * at_.groups + group; }

    const Place& at_;
};

}  // namespace fastwave::cuda
