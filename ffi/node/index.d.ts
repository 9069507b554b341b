/** A failure of the library: its message, and the status code of `tidbit.h`. */
export class TidbitError extends Error {
  status: number;
}

/** Options by key, as `tidbit.h` describes them; numbers that are floats by their key are passed as floats. */
export type Options = Record<string, number | bigint | string>;

/** The version of the library. */
export function version(): string;

/** An opened model, for any number of sessions. */
export class Model {
  constructor(path: string, options?: Options);
  /** A fact by key, such as `vocab_size`. */
  info(key: string): string;
  encode(text: string): Uint32Array;
  decode(tokens: ArrayLike<number>): string;
  session(options?: Options): Session;
  free(): void;
}

/** One text in progress. */
export class Session {
  /** Appends a text or tokens, and runs them. */
  append(text: string | ArrayLike<number>): void;
  /** The text of the next token, or undefined when the model ended the text. */
  next(): string | undefined;
  /** Pieces of text, of at most so many tokens. */
  generate(nTokens?: number): Generator<string, void, void>;
  tokens(): Uint32Array;
  /** The embedding of a text, which has nothing to do with that of the session. */
  embed(text: string): Float32Array;
  rewind(position: number): void;
  save(): Uint8Array;
  load(bytes: Uint8Array): void;
  clone(): Session;
  cancel(): void;
  info(key: string): string;
  free(): void;
}
