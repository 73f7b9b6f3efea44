/** What a JSON schema says, in words and as rows of a table. */

import { h } from "./dom.js";

const MAX_DEPTH = 3;
const MAX_CHOICES = 8;
/** Beyond it a limit is that of the machine's integers, and none of the field. */
const MAX_LIMIT = 2 ** 53;

export class Schemas {
  constructor(document) {
    this._all = document.components?.schemas ?? {};
  }

  /** The schema itself, where it is named only. */
  resolve(schema) {
    const name = schema?.$ref?.split("/").pop();
    return name ? { title: name, ...this._all[name] } : (schema ?? {});
  }

  /** The fields of a schema as rows, those of fields within fields indented. */
  rows(schema, depth = 0, seen = []) {
    const { properties = {}, required = [] } = this.resolve(schema);
    return Object.entries(properties).flatMap(([name, field]) => {
      const row = h(
        "tr",
        { class: `depth-${depth}` },
        h("th", { scope: "row" }, h("code", {}, name)),
        h("td", {}, this.type(field), required.includes(name) ? h("em", {}, " required") : null),
        h("td", {}, this._says(field)),
      );
      const inner = this._object(field);
      if (!inner || depth >= MAX_DEPTH || seen.includes(inner)) return [row];
      return [row, ...this.rows(inner, depth + 1, [...seen, inner])];
    });
  }

  /** The kind of a value in a few words. */
  type(schema) {
    const found = this.resolve(schema);
    const options = found.anyOf ?? found.oneOf;
    if (options) {
      const names = options.filter(({ type }) => type !== "null").map((option) => this.type(option));
      return [...new Set(names)].join(" or ") || "null";
    }
    if (found.const !== undefined) return JSON.stringify(found.const);
    if (found.enum)
      return found.enum
        .slice(0, MAX_CHOICES)
        .map((each) => JSON.stringify(each))
        .join(" or ");
    if (found.type === "array") return found.items ? `list of ${this.type(found.items)}` : "list";
    return (
      [found.type]
        .flat()
        .filter((type) => type && type !== "null")
        .join(" or ") || "any"
    );
  }

  /** An example of a value: the least that is taken. */
  example(schema, depth = 0) {
    const found = this.resolve(schema);
    if (found.default !== undefined && found.default !== null) return found.default;
    const options = found.anyOf ?? found.oneOf;
    if (options) return this.example(options[0], depth);
    if (found.enum) return found.enum[0];
    if (found.type === "array")
      return depth < MAX_DEPTH && found.items ? [this.example(found.items, depth + 1)] : [];
    if (found.properties) {
      const names = found.required ?? [];
      return Object.fromEntries(names.map((name) => [name, this.example(found.properties[name], depth + 1)]));
    }
    return { string: "text", integer: 1, number: 1, boolean: false, object: {} }[found.type] ?? null;
  }

  /** The schema of the object that a field is, holds, or may be; null if it is none with known fields. */
  _object(schema) {
    const found = this.resolve(schema);
    if (found.properties)
      return Object.keys(found.properties).length
        ? schema.$ref
          ? this._all[schema.$ref.split("/").pop()]
          : found
        : null;
    if (found.type === "array" && found.items) return this._object(found.items);
    for (const option of found.anyOf ?? found.oneOf ?? []) {
      const inner = this._object(option);
      if (inner) return inner;
    }
    return null;
  }

  _says(schema) {
    const found = this.resolve(schema);
    const parts = [];
    if (found.description) parts.push(found.description);
    for (const option of [found, ...(found.anyOf ?? [])]) {
      const {
        minimum,
        maximum,
        exclusiveMinimum,
        exclusiveMaximum,
        minLength,
        maxLength,
        minItems,
        maxItems,
      } = this.resolve(option);
      const limits = [
        isLimit(minimum) && `from ${minimum}`,
        isLimit(exclusiveMinimum) && `above ${exclusiveMinimum}`,
        isLimit(maximum) && `up to ${maximum}`,
        isLimit(exclusiveMaximum) && `below ${exclusiveMaximum}`,
        (minLength ?? minItems) > 0 && `at least ${minLength ?? minItems}`,
        (maxLength ?? maxItems) !== undefined && `at most ${maxLength ?? maxItems}`,
      ].filter(Boolean);
      if (limits.length) parts.push(limits.join(", "));
    }
    if (found.default !== undefined && found.default !== null)
      parts.push(`default ${JSON.stringify(found.default)}`);
    return parts.join("; ");
  }
}

function isLimit(value) {
  return value !== undefined && Math.abs(value) < MAX_LIMIT;
}
