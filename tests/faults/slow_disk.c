/* Preloaded: every write, fsync, rename and link below SLOW_FOLDER takes SLOW_MICROSECONDS more. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wait_if_slow(const char *path) {
  const char *folder = getenv("SLOW_FOLDER"), *time = getenv("SLOW_MICROSECONDS");
  if (folder && time && strncmp(path, folder, strlen(folder)) == 0) usleep(atoi(time));
}

static void wait_if_slow_file(int file) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length > 0) {
    path[length] = 0;
    wait_if_slow(path);
  }
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *bytes, size_t size) {
  wait_if_slow_file(file);
  return REAL(write)(file, bytes, size);
}

int fsync(int file) {
  wait_if_slow_file(file);
  return REAL(fsync)(file);
}

int rename(const char *from, const char *to) {
  wait_if_slow(to);
  return REAL(rename)(from, to);
}

int link(const char *from, const char *to) {
  wait_if_slow(to);
  return REAL(link)(from, to);
}
