/* AMX for a CPU without it: a library that, preloaded into a process, carries out the tile instructions which the CPU
 * refuses. Written from the instruction reference: Intel 64 and IA-32 Architectures Software Developer's Manual,
 * volume 2, LDTILECFG, TILELOADD, TILESTORED, TILERELEASE, TILEZERO, TDPBUSD. What the manual forbids, and any other
 * refused instruction, ends the process with a message. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

typedef struct {
    uint8_t data[TILES][ROWS][ROW_BYTES];
    uint8_t rows[TILES], row_bytes[TILES];
    int configured;
} Tiles;

static __thread Tiles tiles; /* the tiles and their configuration belong to a thread */
static long carried_out;

static void fail(const char *what, const uint8_t *code) {
    char line[160];
    int length = snprintf(line, sizeof line, "amx_emulator: %s:", what);
    for (int i = 0; i < 9; i++) length += snprintf(line + length, sizeof line - length, " %02x", code[i]);
    line[length++] = '\n';
    if (write(STDERR_FILENO, line, length) < 0) _exit(3);
    _exit(3);
}

static void load_configuration(const uint8_t *memory, const uint8_t *code) {
    if (memory[0] != 1 || memory[1] != 0) fail("only palette 1 from row 0", code);
    for (int i = 2; i < 16; i++)
        if (memory[i]) fail("reserved bytes of the configuration", code);
    for (int i = 0; i < 8; i++) {
        if (memory[32 + i] || memory[40 + i] || memory[56 + i]) fail("reserved bytes of the configuration", code);
        int rows = memory[48 + i], row_bytes = memory[16 + 2 * i] | memory[17 + 2 * i] << 8;
        if (rows > ROWS || row_bytes > ROW_BYTES || !rows != !row_bytes) fail("shape of a tile", code);
        tiles.rows[i] = rows;
        tiles.row_bytes[i] = row_bytes;
    }
    memset(tiles.data, 0, sizeof tiles.data);
    tiles.configured = 1;
}

static void load_tile(int tile, const uint8_t *memory, int64_t stride) {
    memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
    for (int row = 0; row < tiles.rows[tile]; row++)
        memcpy(tiles.data[tile][row], memory + row * stride, tiles.row_bytes[tile]);
}

static void store_tile(int tile, uint8_t *memory, int64_t stride) {
    for (int row = 0; row < tiles.rows[tile]; row++)
        memcpy(memory + row * stride, tiles.data[tile][row], tiles.row_bytes[tile]);
}

static void multiply(int sums, int left, int right, const uint8_t *code) {
    if (sums == left || sums == right || left == right) fail("three different tiles are needed", code);
    if (tiles.rows[sums] != tiles.rows[left] || tiles.row_bytes[sums] != tiles.row_bytes[right]
        || tiles.row_bytes[left] != 4 * tiles.rows[right] || tiles.row_bytes[sums] % 4)
        fail("shapes of a product", code);
    for (int m = 0; m < tiles.rows[left]; m++) {
        uint32_t row[ROW_BYTES / 4];
        memcpy(row, tiles.data[sums][m], sizeof row);
        for (int k = 0; k < tiles.rows[right]; k++)
            for (int n = 0; n < tiles.row_bytes[sums] / 4; n++)
                for (int i = 0; i < 4; i++)
                    row[n] += (uint32_t)(tiles.data[left][m][4 * k + i] * (int8_t)tiles.data[right][k][4 * n + i]);
        memset(tiles.data[sums][m], 0, ROW_BYTES);
        memcpy(tiles.data[sums][m], row, tiles.row_bytes[sums]);
    }
    for (int m = tiles.rows[left]; m < ROWS; m++) memset(tiles.data[sums][m], 0, ROW_BYTES);
}

static const int REGISTERS[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

typedef struct {
    uint8_t *address; /* base and displacement, and index too where the index is no stride */
    int64_t index;    /* scaled */
    int length;       /* bytes of ModRM, SIB and displacement */
} Operand;

/* The memory operand whose ModRM byte is at `code`; `x` and `b`: high bits of its registers. */
static Operand decode_memory(const greg_t *registers, const uint8_t *code, int x, int b, const uint8_t *next_without) {
    int mode = code[0] >> 6, low = code[0] & 7;
    Operand found = {0, 0, 1};
    int64_t base = 0;
    int has_base = 1, number = low | b << 3;
    if (low == 4) {
        uint8_t sib = code[found.length++];
        int index = (sib >> 3 & 7) | x << 3;
        number = (sib & 7) | b << 3;
        has_base = !((sib & 7) == 5 && mode == 0);
        if (index != 4) found.index = (int64_t)registers[REGISTERS[index]] << (sib >> 6);
    } else if (low == 5 && mode == 0) { /* relative to the next instruction */
        int32_t displacement;
        memcpy(&displacement, code + 1, 4);
        found.length = 5;
        found.address = (uint8_t *)next_without + found.length + displacement;
        return found;
    }
    if (has_base) base = registers[REGISTERS[number]];
    if (mode == 1) base += (int8_t)code[found.length++];
    if (mode == 2 || !has_base) {
        int32_t displacement;
        memcpy(&displacement, code + found.length, 4);
        found.length += 4;
        base += displacement;
    }
    found.address = (uint8_t *)base;
    return found;
}

static void refused(int signal_number, siginfo_t *info, void *context) {
    (void)signal_number, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)registers[REG_RIP];
    if (code[0] != 0xC4 || (code[1] & 31) != 2 || code[2] & 0x84) fail("no tile instruction", code);
    int r = !(code[1] & 0x80), x = !(code[1] & 0x40), b = !(code[1] & 0x20), prefix = code[2] & 3;
    int third = ~code[2] >> 3 & 15, tile = code[4] >> 3 & 7, is_register = code[4] >> 6 == 3;
    enum { NONE, H66, HF3, HF2 };
    __sync_fetch_and_add(&carried_out, 1);
    if (code[3] == 0x5E) {
        if (prefix != H66 || !is_register || r || b || third > 7) fail("a product other than TDPBUSD", code);
        if (!tiles.configured) fail("no configuration", code);
        multiply(tile, code[4] & 7, third, code);
        registers[REG_RIP] += 5;
        return;
    }
    if (third) fail("vvvv must not be used", code);
    if (code[3] == 0x49 && is_register) {
        if (prefix == NONE && code[4] == 0xC0) {
            memset(&tiles, 0, sizeof tiles); /* TILERELEASE */
        } else if (prefix == HF2 && !(code[4] & 7) && !r && tiles.configured) {
            memset(tiles.data[tile], 0, sizeof tiles.data[tile]); /* TILEZERO */
        } else {
            fail("unknown form of 49", code);
        }
        registers[REG_RIP] += 5;
        return;
    }
    if (is_register || (code[3] != 0x49 && code[3] != 0x4B)) fail("unknown instruction", code);
    Operand operand = decode_memory(registers, code + 4, x, b, code + 4);
    if (code[3] == 0x49) {
        if (prefix != NONE || tile || r) fail("unknown form of 49", code);
        load_configuration(operand.address + operand.index, code);
    } else {
        if ((code[4] & 7) != 4 || r) fail("a tile in memory needs a base and a stride", code);
        if (!tiles.configured || !tiles.rows[tile]) fail("no configuration of the tile", code);
        if (prefix == HF2)
            load_tile(tile, operand.address, operand.index);
        else if (prefix == HF3)
            store_tile(tile, operand.address, operand.index);
        else
            fail("unknown form of 4B", code);
    }
    registers[REG_RIP] += 4 + operand.length;
}

/* How many tile instructions this process has carried out. */
long amx_instructions(void) { return carried_out; }

__attribute__((constructor)) static void install(void) {
    struct sigaction action = {0};
    action.sa_sigaction = refused;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, NULL);
}
