// What the scripts of the page share. Elements are typed by their ids in `Ids`, which
// scripts/check_page_types.py reads off the page's HTML.

// Written into the script by regard/views/page.py.
declare const $RAMP: [number, number, number][];
declare const $ROLES: Record<string, string>;

type Values = Float32Array | Uint8Array | Int8Array;
interface Packed<T extends Values = Values> { values: T; shape: number[]; each: number }
interface Margin { values: Float32Array; each: number }

interface Head { s: number; h: number }
interface Place { queries: number | null; keys: number | null; words: boolean }
interface Site {
  layer: number | null; kind: string; module: string; tower: string; heads: number | null;
  kv_heads: number | null; head_size: number | null; causal: boolean | null;
  queries: number | null; keys: number | null; grid: [number, number] | null;
  patches: Place | null; rule: string; tile: number | null;
}
interface Score {
  title: string; definition: string; low: number; high: number | null;
  chance: number | null; tokens: number | null; top: number;
}
interface Role { name: string; title: string; threshold: number }
interface DeepHead {
  site: number; head: number; kv_head: number; tile: number; scale: number;
  softcap: number | null; causal: boolean; offset: number; exact: boolean;
  left_out?: boolean;
}
interface OpenDeep extends DeepHead {
  q: Packed<Float32Array>; k: Packed<Float32Array>; lse: Packed<Float32Array>; map: Packed<Uint8Array>;
}
interface WordsManifest {
  tokens: string[]; branch: string; grid: [number, number]; steps: number[]; left_out: number;
  sites: { layer: number | null; kind: string; module: string }[];
}
interface RolloutManifest {
  layers: number[]; of: number; grid: [number, number]; first: number; modules: string[];
}
// What regard/views/seen.py writes; `compare` by regard/views/compare.py alone.
interface Manifest {
  title: string; created?: string; model: { name: string; [fact: string]: string };
  tokens: string[]; modality: string; grid: [number, number] | null; sites: Site[];
  scores: Record<string, Score>; roles: Role[]; findings?: string[]; deep: DeepHead[];
  words?: WordsManifest | null; rollout?: RolloutManifest | null;
  compare?: { names: [string, string]; note: string };
}

interface PageView {
  name: string; every: string[]; sections(): string[]; matches(params: URLSearchParams): boolean;
  open(params: URLSearchParams): void | Promise<void>; write(): [string, unknown][];
}

interface PagePanel {
  id: string; has(): boolean; load(): Promise<void>; open(params: URLSearchParams): unknown;
  redraw(): unknown; write(): [string, unknown][];
}

// A part of a map: bytes on the log scale, and where it lies.
interface Tiles { bytes: Uint8Array; rows: number; columns: number; tile: number }
interface Levels { lut: Uint8Array; low: number; high: number }
interface Shown extends Tiles, Levels { i: number; j: number; weights: Float32Array | null; close: boolean }
interface Box { i: number; j: number; n: number; m: number }

// Of one head that is looked at.
interface Now {
  head: Head; deep: OpenDeep | null; pin: number | null; key: number | null; by: "query" | "key";
  box: Box; side: number; exactMs: number; form: string; scale: string; rows: boolean; hide: boolean;
  bare: Uint8Array | null; left?: Map<number, number>; n?: number; m?: number; close?: boolean;
  margins?: [Margin | null, Margin | null]; told?: string; received?: number; spread?: number;
}
