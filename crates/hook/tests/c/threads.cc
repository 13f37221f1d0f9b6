// Threads: creation, join, cancellation with destructors and cleanup handlers, identity changes in all threads, fork from a thread.
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

static int ends[2];
static std::atomic<int> destroyed, cleaned, started;
struct Guard { ~Guard() { destroyed++; } };
static void clean(void *) { cleaned++; }

static void *blocked(void *) {
    Guard guard;
    pthread_cleanup_push(clean, nullptr);
    started++;
    char c;
    for (;;) if (read(ends[0], &c, 1) == 1) abort();
    pthread_cleanup_pop(0);
    return nullptr;
}

int main() {
    if (pipe(ends)) return 1;
    std::atomic<long> sum{0};
    for (int round = 0; round < 5; round++) {
        std::vector<std::thread> all;
        for (int i = 0; i < 8; i++) all.emplace_back([&] { for (int n = 0; n < 200; n++) sum += getppid() == getppid(); });
        for (auto &t : all) t.join();
    }
    if (sum != 8000) return 2;
    for (int round = 0; round < 50; round++) {
        pthread_t t;
        int before = started;
        if (pthread_create(&t, nullptr, blocked, nullptr)) return 3;
        if (round % 2) while (started == before) usleep(100);
        if (pthread_cancel(t)) return 4;
        void *result;
        if (pthread_join(t, &result) || result != PTHREAD_CANCELED) return 5;
    }
    // Each that began was left through its destructor and its cleanup handler.
    if (started != destroyed || started != cleaned || started < 25) {
        fprintf(stderr, "%d %d %d\n", started.load(), destroyed.load(), cleaned.load());
        return 6;
    }
    std::atomic<bool> stop{false};
    std::thread spinner([&] { while (!stop) getppid(); });
    if (setgid(getgid())) return 7; // reaches every thread by a signal
    std::thread forker([] {
        for (int i = 0; i < 5; i++) {
            pid_t child = fork();
            if (child == 0) { free(malloc(1000)); _exit(7); }
            int status;
            if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 7) abort();
        }
    });
    forker.join();
    stop = true;
    spinner.join();
    puts("ok");
}
