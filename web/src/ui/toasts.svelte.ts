/** Short messages at the edge of the page. */

export interface Toast {
  readonly id: number;
  readonly text: string;
  readonly tone: "plain" | "good" | "bad";
}

const SHOWN_MS = 6000;

class Toasts {
  list = $state.raw<readonly Toast[]>([]);
  private next = 1;

  show(text: string, tone: Toast["tone"] = "plain"): void {
    const id = this.next++;
    this.list = [...this.list.slice(-3), { id, text, tone }];
    setTimeout(() => this.hide(id), SHOWN_MS);
  }

  hide(id: number): void {
    this.list = this.list.filter((toast) => toast.id !== id);
  }
}

export const toasts = new Toasts();
