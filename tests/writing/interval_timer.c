/* For LD_PRELOAD, so that it is also in every child: a signal every 3 ms of real time and of CPU
   time, whose handler does nothing and restarts system calls. */

#include <signal.h>
#include <sys/time.h>

static void nothing(int number) { (void)number; }

__attribute__((constructor)) static void start(void)
{
    const struct itimerval every = {{0, 3000}, {0, 3000}};
    const struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};

    sigaction(SIGALRM, &action, 0);
    sigaction(SIGPROF, &action, 0);
    setitimer(ITIMER_REAL, &every, 0);
    setitimer(ITIMER_PROF, &every, 0);
}
